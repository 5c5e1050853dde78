#!/usr/bin/env bash
# Makes this machine ready to run tdefs: the Debian packages, the FUSE device, and .venv with tdefs in it.
#
#   scripts/setup.sh          what tdefs and scripts/quickstart.sh need
#   scripts/setup.sh --dev    and what scripts/test.sh needs
#
# Changes only what is missing, so it can be run at any time. Only apt, modprobe and the device file need root:
# run it as root, or as a user with sudo. Leaves .venv/bin/tdefs, and below .venv/share a manual page and completions.
set -euo pipefail

umask 022 # what is made here is for the user postgres, too
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$repo/.venv
stamp=$venv/.tdefs-setup
python=/usr/bin/python3 # Debian's: one in a home directory could not be run by the user postgres

say() { printf 'setup: %s\n' "$*"; }

die() {
    printf 'setup: %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '%s\n' "$line" >&2; done
    exit 1
}

usage() { sed -n '2,8s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; }

extras=
while (($#)); do
    case $1 in
        --dev) extras='[dev,shell,postgres18,keycommands,kmip,vault-transit,vault-kv,openbao,aws-kms,pkcs11]' ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) die "unknown argument \"$1\"" "HINT: scripts/setup.sh --help" ;;
    esac
    shift
done

# Runs a command as root; 125 if that cannot be done. Without a terminal sudo must not ask for a password.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        if [[ -t 0 ]]; then sudo -- "$@"; else sudo -n -- "$@"; fi
    else
        return 125
    fi
}

can_be_root() { as_root true 2>/dev/null; }

# --- Debian packages -------------------------------------------------------------------------------------------

installed() {
    local status
    status=$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) && [[ $status == installed ]]
}

have_server() {
    local server
    for server in /usr/lib/postgresql/*/bin/postgres; do
        [[ -x $server ]] && return 0
    done
    return 1
}

missing_packages() {
    local package
    for package in fuse3 libfuse3-dev libssl-dev pkg-config gcc libc6-dev python3 python3-dev python3-venv; do
        installed "$package" || printf '%s\n' "$package"
    done
    if [[ -n $extras ]]; then
        # The tests name PostgreSQL 15; PostgreSQL 18 comes with pip. faketime: they set the daemon's clock.
        # swtpm: a TPM of software. make and what follows: to build PostgreSQL, and run its TAP suites.
        for package in postgresql-15 postgresql-client-15 shellcheck btrfs-progs stress-ng fio faketime argon2 \
            opensc softhsm2 swtpm tpm2-tools rsync systemd make bison flex zlib1g-dev perl libipc-run-perl; do
            installed "$package" || printf '%s\n' "$package"
        done
    elif ! have_server; then
        printf 'postgresql\n'
    fi
}

# Debian's server package creates and starts a cluster "main" when it is installed. Whoever runs this wants a
# server on an encrypted mount, not one more: a drop-in says so for as long as the installation takes.
install_packages() {
    local no_main_cluster=/etc/postgresql-common/createcluster.d/tdefs-setup.conf failed=0
    say "installing: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update ||
        die "apt-get update failed" "HINT: check the network and the package sources, then run this again"
    if [[ " $* " == *" postgresql"* ]]; then
        as_root mkdir -p "${no_main_cluster%/*}"
        echo 'create_main_cluster = false' | as_root tee "$no_main_cluster" >/dev/null
    fi
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" </dev/null >/dev/null || failed=1
    if [[ " $* " == *" postgresql"* ]]; then as_root rm -f "$no_main_cluster"; fi
    ((failed == 0)) || die "apt-get could not install: $*" "HINT: run \"apt-get install $*\" to see why"
}

ensure_packages() {
    local -a missing
    command -v dpkg-query >/dev/null || die "this is not Debian: the script cannot find out which packages are missing" \
        "HINT: install fuse 3 and OpenSSL with their headers, a C compiler, pkg-config, Python 3.11 with headers and" \
        "HINT: venv, and PostgreSQL 15, then: python3 -m venv .venv && .venv/bin/pip install -e ."
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    can_be_root || die "packages are missing, and installing them needs root" \
        "DETAIL: this user has no sudo, or sudo asks for a password and there is no terminal" \
        "HINT: as root: apt-get install ${missing[*]}"
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || die "still missing after the installation: ${missing[*]}"
}

# --- the FUSE device -------------------------------------------------------------------------------------------

can_open_fuse() { (: <>/dev/fuse) 2>/dev/null; }

ensure_fuse() {
    ! can_open_fuse || return 0
    if [[ ! -e /dev/fuse ]]; then
        say "loading the kernel module fuse"
        as_root modprobe fuse 2>/dev/null || true
        # A container has no udev to create the device file of a module that the kernel has.
        if [[ ! -e /dev/fuse ]] && grep -qw fuse /proc/filesystems; then
            as_root mknod -m 0666 /dev/fuse c 10 229 2>/dev/null || true
        fi
        [[ -e /dev/fuse ]] || die "there is no /dev/fuse, and it could not be created" \
            "HINT: as root: modprobe fuse" \
            "HINT: in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
    fi
    if ! can_open_fuse && ((EUID != 0)) && can_be_root; then
        say "letting every user open /dev/fuse, as udev does"
        as_root chmod 0666 /dev/fuse
    fi
    can_open_fuse || die "/dev/fuse cannot be opened by $(id -un)" \
        "HINT: as root: chmod 0666 /dev/fuse" \
        "HINT: in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
}

# --- .venv -----------------------------------------------------------------------------------------------------

# What the environment was last made from. An environment with the extras serves without them too.
wanted_stamp() {
    local made_from
    made_from=$(cd -- "$repo" && cat -- pyproject.toml setup.py tdefs/format/_compiled.c tdefs/cli/launcher.c | sha256sum)
    printf '%s%s\n' "${made_from%% *}" "$1"
}

venv_is_current() {
    [[ -x $venv/bin/tdefs && -r $stamp ]] || return 1
    grep -qxF -e "$(wanted_stamp "$extras")" -e "$(wanted_stamp '[dev,shell,postgres18,keycommands,kmip,vault-transit,vault-kv,openbao,aws-kms,pkcs11]')" -- "$stamp"
}

# A directory that was copied or moved here has scripts that start another place's Python.
venv_works() {
    "$venv/bin/python" -c 'import pip' 2>/dev/null &&
        [[ $(readlink -f -- "$venv/bin/python") == "$(readlink -f $python)" ]] &&
        head -n 3 -- "$venv/bin/pip" | grep -qF -- "$venv/bin/python"
}

make_venv() {
    if ! venv_works; then
        say "creating .venv with $($python --version)"
        rm -rf -- "$venv"
        $python -m venv -- "$venv"
    fi
    local with=${extras:-[shell]}
    say "installing tdefs$with into .venv"
    rm -f -- "$stamp"
    (cd -- "$repo" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$with") ||
        die "pip could not install tdefs$with" "HINT: check the network and pip's configuration, then run this again"
    wanted_stamp "$extras" >"$stamp"
}

ensure_venv() {
    local lock
    ! { venv_is_current && venv_works; } || return 0
    [[ -w $repo && (! -e $venv || -w $venv) ]] ||
        die "the Python environment $venv must be made or updated, and $(id -un) may not write there" \
            "HINT: run scripts/setup.sh as $(stat -c %U -- "$repo")"
    # Two runs at the same time: the second waits, then finds everything done.
    exec {lock}<"$repo"
    flock "$lock"
    if ! { venv_is_current && venv_works; }; then make_venv; fi
    exec {lock}<&-
    [[ -x $venv/bin/tdefs ]] || die "pip left no $venv/bin/tdefs"
}

# --- the manual page and completions ---------------------------------------------------------------------------

# They are made from the code, so they are made again when it has changed.
ensure_shell_files() {
    local page=$venv/share/man/man1/tdefs.1
    [[ ! -s $page || -n $(find "$repo/tdefs" -name '*.py' -newer "$page" -print -quit) ]] || return 0
    [[ -w $venv ]] || return 0 # another user's; tdefs runs without them
    "$venv/bin/python" -m tdefs.cli.shell_files "$venv/share" || die "the manual page could not be made"
}

ensure_packages
ensure_fuse
ensure_venv
ensure_shell_files
