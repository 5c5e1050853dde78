#!/bin/sh
# Key command: a random key, encrypted to a PIV smart card's RSA key, is kept in %d, and the card decrypts it each time.
#
# With the PIN typed on the terminal, without echo:
#   tdefs mount BACKING MOUNTPOINT -R --key-command '/usr/local/lib/tdefs/piv.sh "%d" %R "%p"'
# Without: the PIN is in a file, of mode 0600, that TDEFS_PIV_PIN_FILE names.
#   tdefs mount BACKING MOUNTPOINT --key-command 'TDEFS_PIV_PIN_FILE=/etc/tdefs/pin /usr/local/lib/tdefs/piv.sh "%d"'
#
# Needs pkcs11-tool and openssl (Debian: opensc, openssl). Variables, with their defaults, to be said in
# the key command, as above, or under "environment" in tdefs.yaml:
#   TDEFS_PIV_MODULE   opensc-pkcs11.so   the PKCS#11 library of the card
#   TDEFS_PIV_KEY_ID   03                 the key's id: PIV's key management key, slot 9D
# The card must hold an RSA key there, and its certificate or public key. Without its file in %d the key is lost, and
# so it is without the card: have the same key on a second card, or a second protector.
set -eu

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

[ $# -eq 1 ] || [ $# -eq 3 ] || die 'usage: piv.sh "%d" [%R "%p"]'
directory=$1
terminal=${2-}
wrapped=$directory/piv.wrapped
key_id=${TDEFS_PIV_KEY_ID:-03}
[ -d "$directory" ] || die "there is no directory $directory"
[ -z "$terminal" ] || [ -t "$terminal" ] || die "descriptor $terminal is not a terminal"
for program in pkcs11-tool openssl; do
    command -v "$program" >/dev/null || die "the program $program is missing"
done

settings='' new=''
clean_up() {
    if [ -n "$settings" ]; then stty "$settings" <&"$terminal"; fi
    rm -f -- ${new:+"$new" "$new.public" "$new.messages"}
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
umask 077
new=$(mktemp "$directory/new.XXXXXX")

# It says on stderr which slot it uses, even when all is well. A person who typed a wrong PIN must see the reason.
card() {
    pkcs11-tool --module "${TDEFS_PIV_MODULE:-opensc-pkcs11.so}" "$@" 2>"$new.messages" || {
        if [ -n "$terminal" ]; then cat -- "$new.messages" >&"$terminal"; else cat -- "$new.messages" >&2; fi
        die 'pkcs11-tool failed'
    }
}

if [ ! -e "$wrapped" ]; then
    card --read-object --type pubkey --id "$key_id" --output-file "$new.public" >/dev/null
    key=$(openssl rand -hex 32)
    # The padding of PKCS #1 version 1.5 is what drivers of PIV cards can undo, and here it is no oracle's.
    printf '%s' "$key" | openssl pkeyutl -encrypt -pubin -keyform DER -inkey "$new.public" \
        -pkeyopt rsa_padding_mode:pkcs1 -out "$new"
    sync "$new"
    ln -- "$new" "$wrapped"
    sync "$directory"
fi

if [ -n "$terminal" ]; then
    settings=$(stty -g <&"$terminal")
    stty -echo <&"$terminal"
    printf '%s' "$3" >&"$terminal"
    IFS= read -r TDEFS_PIV_PIN <&"$terminal" || die 'no PIN was typed'
    printf '\n' >&"$terminal"
else
    [ -r "${TDEFS_PIV_PIN_FILE:?names the file with the PIN}" ] || die "cannot read $TDEFS_PIV_PIN_FILE"
    TDEFS_PIV_PIN=$(cat -- "$TDEFS_PIV_PIN_FILE")
fi
# In the environment, which root and this user can read; arguments are everybody's.
export TDEFS_PIV_PIN
card --login --pin env:TDEFS_PIV_PIN --decrypt --mechanism RSA-PKCS --id "$key_id" --input-file "$wrapped"
