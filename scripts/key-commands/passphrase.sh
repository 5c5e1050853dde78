#!/bin/sh
# Key command: Argon2id makes the key from a passphrase that a person types on the terminal, without echo.
#
#   tdefs mount BACKING MOUNTPOINT -R --key-command '/usr/local/lib/tdefs/passphrase.sh "%d" %R "%p"'
#
# Needs the program argon2 (Debian: argon2). The first use keeps a random salt in %d; it is no secret, but without it
# the passphrase gives another key. One guess costs an attacker 256 MiB and about a second; a plain hash of the
# passphrase would cost nothing. tdefs asks for passphrases by itself, too; this is for those who need a command.
set -eu

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

[ $# -eq 3 ] || die 'usage: passphrase.sh "%d" %R "%p"'
directory=$1 terminal=$2 prompt=$3
salt_file=$directory/passphrase.salt
[ -d "$directory" ] || die "there is no directory $directory"
[ -t "$terminal" ] || die "descriptor $terminal is not a terminal"
command -v argon2 >/dev/null || die 'the program argon2 is missing'

settings=$(stty -g <&"$terminal")
new=
trap 'stty "$settings" <&"$terminal"; rm -f -- ${new:+"$new"}' EXIT
trap 'exit 1' HUP INT TERM
stty -echo <&"$terminal"
printf '%s' "$prompt" >&"$terminal"
IFS= read -r passphrase <&"$terminal" || die 'nothing was typed'
printf '\n' >&"$terminal"

if [ ! -e "$salt_file" ]; then
    # A passphrase that protects nothing yet can be refused; later, a short one is just wrong.
    [ "${#passphrase}" -ge 12 ] || die 'the passphrase is shorter than 12 characters'
    umask 077
    new=$(mktemp "$directory/new.XXXXXX")
    od -An -N 16 -v -t x1 /dev/urandom | tr -d ' \n' >"$new"
    sync "$new"
    ln -- "$new" "$salt_file"
    rm -f -- "$new"
    sync "$directory"
fi
salt=$(cat -- "$salt_file")
[ "${#salt}" -eq 32 ] || die "$salt_file is damaged"

# printf belongs to the shell: no other user sees its arguments.
printf '%s' "$passphrase" | argon2 "$salt" -id -v 13 -k 262144 -t 3 -p 1 -l 32 -r
