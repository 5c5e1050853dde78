"""Each system call of the daemon fails, and disks fail below it."""
