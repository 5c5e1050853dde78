#!/bin/sh
# Key command: a person types the key itself, 64 hexadecimal characters, on the terminal, without echo.
#
#   tdefs mount BACKING MOUNTPOINT -R --key-command '/usr/local/lib/tdefs/direct.sh %R "%p"'
#
# Make a key with "openssl rand -hex 32", and keep it on paper, in a safe. "tdefs init" asks for it twice.
set -eu

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

[ $# -eq 2 ] || die 'usage: direct.sh %R "%p"'
terminal=$1 prompt=$2
[ -t "$terminal" ] || die "descriptor $terminal is not a terminal"

settings=$(stty -g <&"$terminal")
trap 'stty "$settings" <&"$terminal"' EXIT
trap 'exit 1' HUP INT TERM
stty -echo <&"$terminal"
printf '%s' "$prompt" >&"$terminal"
IFS= read -r key <&"$terminal" || die 'nothing was typed'
printf '\n' >&"$terminal"

# Spaces help the person who types it.
printf '%s\n' "$key" | tr -d '[:space:]-'
