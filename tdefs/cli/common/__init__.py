"""What several commands share: options, unlocking, output, and how a command runs."""
