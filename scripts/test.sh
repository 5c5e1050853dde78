#!/usr/bin/env bash
# Installs what the tests need and runs every check: ruff, mypy --strict, shellcheck, pytest.
#
#   scripts/test.sh                      everything
#   scripts/test.sh PYTEST-ARGUMENT...   the same, with only these tests: scripts/test.sh tests/unit -k header
#   scripts/test.sh --whole ...          the same, with the whole of what a usual run takes a part of: see tests/README.md
#   scripts/test.sh --strange ...        the same where signals, umask, language, limits and more are unusual; as root
#
# As root the tests run PostgreSQL as the user postgres, as a user everything as that user. Whatever the end, a
# failure or Ctrl-C, no process, no mount and no file stays behind.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,10s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"
    exit 0
fi
cd -- "$repo"
if [[ ${1-} == --whole ]]; then
    shift
    export TDEFS_TEST_WHOLE=1
fi
if [[ ${1-} == --strange ]]; then
    shift
    exec bash tests/support/strange.sh bash "$repo/scripts/test.sh" "$@"
fi
# What the caller's shell has set for other work is not for these tools; tests/support/surroundings.py does the same for
# the tests. A descriptor that is closed would be given to the next file that is opened.
umask 022
unset PYTEST_ADDOPTS PYTEST_PLUGINS PYTHONPATH PYTHONHOME PYTHONSTARTUP MYPYPATH
export LC_ALL=C.UTF-8
[[ -e /proc/self/fd/0 ]] || exec 0</dev/null
[[ -e /proc/self/fd/1 ]] || exec 1>/dev/null
[[ -e /proc/self/fd/2 ]] || exec 2>/dev/null

child=
work=

# The processes that this run started name its directory in their arguments, or work in it. Nothing here may touch
# a file in the directory: with its daemon dead, a mount answers nothing or an error.
processes_in_work() {
    local process
    for process in /proc/[0-9]*; do
        [[ $process != "/proc/$$" && $process != "/proc/$BASHPID" ]] || continue
        if [[ $(readlink -- "$process/cwd" 2>/dev/null) == "$work"* ]] ||
            tr '\0' '\n' 2>/dev/null <"$process/cmdline" | grep -qF -e "$work"; then
            printf '%s\n' "${process#/proc/}"
        fi
    done 2>/dev/null
}

signal_processes() {
    local pid name signal=$1
    for pid in $(processes_in_work); do
        name=$(cat "/proc/$pid/comm" 2>/dev/null) || continue
        # To PostgreSQL, SIGQUIT is the immediate shutdown; it removes its shared memory, as SIGKILL would not.
        if [[ $signal == TERM && $name == postgres ]]; then
            kill -QUIT "$pid" 2>/dev/null || true
        else
            kill -"$signal" "$pid" 2>/dev/null || true
        fi
    done
}

unmount_work() {
    local point
    while read -r _ _ _ _ point _; do
        point=$(printf '%b' "$point") # it has \040 for a space
        [[ $point == "$work"/* ]] || continue
        if ((EUID == 0)); then umount -l -- "$point" || true; else fusermount3 -uz -- "$point" || true; fi
    done < <(sort -r -k 5,5 /proc/self/mountinfo)
}

clean_up() {
    local try
    [[ -n $work ]] || return 0
    signal_processes TERM
    for ((try = 0; try < 50; try++)); do
        [[ -n $(processes_in_work) ]] || break
        sleep 0.1
    done
    signal_processes KILL
    unmount_work
    rm -rf --one-file-system -- "$work"
}

interrupted() {
    local try
    trap '' INT TERM HUP
    if [[ -n $child ]]; then
        kill -INT -- "-$child" 2>/dev/null || true
        for ((try = 0; try < 300; try++)); do
            kill -0 -- "-$child" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$child" 2>/dev/null || true
    fi
    echo "test.sh: INTERRUPTED" >&2
    exit "$1"
}

trap clean_up EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP

failed=()
passed=()

# check NAME COMMAND...: runs a command and goes on after a failure, so that one run shows all failures. The command has a
# process group of its own and is waited for, so that a signal is acted on at once and not after the command.
check() {
    local name=$1 status=0 began=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    set -m
    "$@" </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    if ((status == 0)); then
        passed+=("$name $((SECONDS - began)) s")
    else
        failed+=("$name (exit code $status)")
    fi
}

check setup bash scripts/setup.sh --dev
if ((${#failed[@]})); then
    printf '\ntest.sh: FAILED: %s\n' "${failed[*]}"
    exit 1
fi

work=$(mktemp -d /var/tmp/tdefs-test-XXXXXX)
chmod 0755 -- "$work" # PostgreSQL's own user must pass
mkdir -- "$work/tmp"
export TDEFS_TEST_WORK=$work TMPDIR=$work/tmp

mapfile -t scripts < <(find scripts conf tests .ci -type f \( -name '*.sh' -o -path '.ci/run' \) | sort)
check 'ruff check' .venv/bin/ruff check .
check 'ruff format' .venv/bin/ruff format --check .
check 'mypy' .venv/bin/mypy --strict
check 'shellcheck' shellcheck "${scripts[@]}"
# A machine's own configuration is not for the tests: they see none, as far as that can be done.
alone=()
if ((EUID == 0)) && [[ -e /etc/tdefs ]]; then
    # shellcheck disable=SC2016
    alone=(unshare --mount --propagation=private sh -c 'mount -t tmpfs none /etc/tdefs && exec "$@"' sh)
fi
# Two at a time: one test waits for disks and servers while the other computes.
check 'pytest' "${alone[@]}" .venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"

printf '\n'
if ((${#failed[@]})); then
    (IFS=, && printf 'test.sh: FAILED: %s\n' "${failed[*]}" | sed 's/,/, /g')
    exit 1
fi
(IFS=, && printf 'test.sh: PASSED: %s\n' "${passed[*]}" | sed 's/,/, /g')
