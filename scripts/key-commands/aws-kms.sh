#!/bin/sh
# Key command: a data key that AWS KMS has encrypted is kept in %d, and AWS KMS decrypts it each time.
#
#   tdefs init BACKING --key-command 'TDEFS_AWS_KMS_KEY=alias/tdefs /usr/local/lib/tdefs/aws-kms.sh "%d"'
#
# Needs the AWS command line (Debian: awscli), and credentials and a region in any of the ways that it knows: best the
# role of the instance, else ~/.aws of the user who runs tdefs. The first use needs the variable TDEFS_AWS_KMS_KEY (a
# key's id, ARN or alias) and the right kms:GenerateDataKeyWithoutPlaintext; every use needs kms:Decrypt. Variables stand
# in the key command, as above, or under "environment" in tdefs.yaml: those of tdefs's caller do not reach this script.
# Without its file in %d the key is lost. Nobody is asked, so it works at boot.
set -eu

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

[ $# -eq 1 ] || die 'usage: aws-kms.sh "%d"'
directory=$1
wrapped=$directory/aws-kms.wrapped
context='application=tdefs' # AWS logs it with each use, and a policy may demand it
[ -d "$directory" ] || die "there is no directory $directory"
command -v aws >/dev/null || die 'the program aws is missing'

umask 077
new=$(mktemp "$directory/new.XXXXXX")
trap 'rm -f -- "$new" "$new.messages"' EXIT
trap 'exit 1' HUP INT TERM

# It may warn on stderr and go on, which tdefs takes for a failure: only the messages of one that failed are passed on.
kms() {
    aws --output text kms "$@" 2>"$new.messages" || {
        cat -- "$new.messages" >&2
        die "aws kms $1 failed"
    }
}

if [ ! -e "$wrapped" ]; then
    : "${TDEFS_AWS_KMS_KEY:?names the key of AWS KMS that protects a new data key}"
    blob=$(kms generate-data-key-without-plaintext --key-id "$TDEFS_AWS_KMS_KEY" --key-spec AES_256 \
        --encryption-context "$context" --query CiphertextBlob)
    printf '%s' "$blob" | base64 -d >"$new"
    sync "$new"
    ln -- "$new" "$wrapped"
    sync "$directory"
fi

# The key passes through pipes alone: printf belongs to the shell.
key=$(kms decrypt --ciphertext-blob "fileb://$wrapped" --encryption-context "$context" --query Plaintext)
printf '%s' "$key" | base64 -d | od -An -v -t x1 | tr -d ' \n'
