"""A stored file is recognised, whatever has happened to its header."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tdefs.data.forms import Broken, Empty, Encrypted, Expectations, FileForms, Plain
from tdefs.data.identity import check_identity, identity_at
from tdefs.format.errors import (
    DamagedHeader,
    ForeignFile,
    FormatError,
    IdentityMismatch,
    MissingHeader,
    UnknownDataKey,
    WrongKey,
)
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, FileClass, Identity, named, of_class
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suite1.pages import page_cipher
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing
from tests.support.served_volume import DK_1, DK_2, RING, VOLUME_ID, Answers, relation

STRICT = FileForms(RING, Expectations(RING.volume_id, plain_files=False, lost_headers=False))
MIXED = FileForms(RING, Expectations(RING.volume_id, plain_files=True, lost_headers=False))
AFTER_CRASH = FileForms(RING, Expectations(RING.volume_id, plain_files=False, lost_headers=True))
MIXED_AFTER_CRASH = FileForms(RING, Expectations(RING.volume_id, plain_files=True, lost_headers=True))
EVERY = pytest.mark.parametrize("forms", [STRICT, MIXED, AFTER_CRASH, MIXED_AFTER_CRASH])

HEADER = STRICT.new_header(None, relation(16385))
PAGE = STRICT.encode(HEADER)
NOTES = of_class(FileClass.OTHER)
SIZE = 3 * HEADER_SIZE


def problem(forms: FileForms, page: bytes, size: int = SIZE, *, zeros: bool = False) -> type[FormatError]:
    """The kind of error that a stored file gives; fails if the file is presented as anything at all."""
    form = forms.recognise(page, size, Answers(zeros=zeros))
    assert isinstance(form, Broken), f"presented as {form}"
    return type(form.error)


@EVERY
def test_a_sealed_file_is_recognised_without_asking_the_policy(forms: FileForms) -> None:
    class Never(Answers):
        def should_be_encrypted(self) -> bool:
            raise AssertionError("the policy decides at creation only")

    assert forms.recognise(PAGE, SIZE, Never()) == Encrypted(HEADER)


@EVERY
def test_a_flipped_bit_is_an_error_and_never_a_plain_file(forms: FileForms) -> None:
    for bit in range(RECORD_SIZE * 8):
        page = bytearray(PAGE)
        page[bit // 8] ^= 1 << bit % 8
        assert problem(forms, bytes(page)) is DamagedHeader, f"bit {bit}"


@EVERY
@pytest.mark.parametrize("size", [8, 100, 255, 256, 257, 8191])
def test_a_file_cut_inside_its_header_page_is_damage(forms: FileForms, size: int) -> None:
    assert problem(forms, PAGE[:size], size) is DamagedHeader


@EVERY
def test_a_file_of_another_volume_is_foreign(forms: FileForms) -> None:
    other = FileForms(
        KeyRing(bytes(16), "dk_1", [DK_1]), Expectations(bytes(16), plain_files=False, lost_headers=False)
    )
    page = other.encode(other.new_header(None, NOTES))
    assert problem(forms, page) is ForeignFile


@EVERY
def test_a_key_of_the_same_name_but_another_secret_is_a_wrong_key(forms: FileForms) -> None:
    ring = KeyRing(VOLUME_ID, "dk_1", [DataKey("dk_1", 1, AES_256_XTS, bytes(32))])
    other = FileForms(ring, Expectations(ring.volume_id, plain_files=False, lost_headers=False))
    assert problem(forms, other.encode(other.new_header(None, NOTES))) is WrongKey


@EVERY
@pytest.mark.parametrize("key", [DataKey("dk_9", 1, AES_256_XTS, bytes(32)), replace(DK_1, round=2)])
def test_a_key_or_round_that_the_keystore_lacks_is_said_to_be_unknown(forms: FileForms, key: DataKey) -> None:
    other = FileForms(
        KeyRing(VOLUME_ID, key.name, [key]), Expectations(VOLUME_ID, plain_files=False, lost_headers=False)
    )
    assert problem(forms, other.encode(other.new_header(None, NOTES))) is UnknownDataKey


def test_a_file_without_header_is_plain_only_where_plain_files_are_allowed() -> None:
    assert problem(STRICT, b"listen_addresses = '*'\n", 23) is ForeignFile
    assert problem(AFTER_CRASH, b"listen_addresses = '*'\n", 23) is ForeignFile
    assert MIXED.recognise(b"listen_addresses = '*'\n", 23, Answers()) == Plain()


@EVERY
def test_a_file_of_no_bytes_is_neither_encrypted_nor_plain(forms: FileForms) -> None:
    assert forms.recognise(b"", 0, Answers()) == Empty()


def test_a_wiped_header_is_missing_after_a_clean_unmount() -> None:
    assert problem(STRICT, bytes(HEADER_SIZE)) is MissingHeader
    assert problem(MIXED, bytes(HEADER_SIZE)) is MissingHeader


def test_a_header_that_a_crash_kept_from_the_disk_makes_an_empty_file() -> None:
    assert AFTER_CRASH.recognise(bytes(HEADER_SIZE), SIZE, Answers()) == Empty()


@pytest.mark.parametrize("forms", [MIXED, MIXED_AFTER_CRASH])
def test_among_plain_files_zeros_alone_are_a_file_without_content(forms: FileForms) -> None:
    assert forms.recognise(bytes(100), 100, Answers()) == Empty(100)
    assert forms.recognise(bytes(HEADER_SIZE), HEADER_SIZE, Answers()) == Empty(HEADER_SIZE)
    assert forms.recognise(bytes(HEADER_SIZE), SIZE, Answers()) == Empty(SIZE)


@pytest.mark.parametrize("forms", [MIXED, MIXED_AFTER_CRASH])
def test_more_than_zeros_behind_a_zero_header_is_damage_unless_marked_as_plain(forms: FileForms) -> None:
    assert problem(forms, bytes(HEADER_SIZE), SIZE, zeros=False) is MissingHeader
    assert forms.recognise(bytes(HEADER_SIZE), SIZE, Answers(zeros=False, plain=True)) == Plain()


@pytest.mark.parametrize("forms", [MIXED, MIXED_AFTER_CRASH])
@pytest.mark.parametrize("encrypts", [False, True])
def test_zeros_whose_encryption_was_interrupted_have_the_length_they_had(forms: FileForms, encrypts: bool) -> None:
    answers = Answers(encrypts=encrypts, length=4711)
    assert forms.recognise(bytes(HEADER_SIZE), SIZE, answers) == Empty(4711)
    answers = Answers(encrypts=encrypts, length=4711, zeros=False)
    assert isinstance(forms.recognise(bytes(HEADER_SIZE), SIZE, answers), Broken)


@pytest.mark.parametrize("forms", [MIXED, MIXED_AFTER_CRASH])
@pytest.mark.parametrize("size", [1, 100, HEADER_SIZE, SIZE])
def test_zeros_are_a_plain_file_where_the_policy_leaves_it_plain(forms: FileForms, size: int) -> None:
    assert forms.recognise(bytes(min(size, HEADER_SIZE)), size, Answers(encrypts=False)) == Plain()


def test_new_files_take_the_newest_round_and_a_file_id_of_their_own() -> None:
    ring = KeyRing(VOLUME_ID, "dk_1", [DK_1, replace(DK_1, round=2, secret=bytes(32)), DK_2])
    forms = FileForms(ring, Expectations(ring.volume_id, plain_files=False, lost_headers=False))
    headers = [forms.new_header(None, NOTES) for _ in range(100)]
    assert {(header.key_name, header.key_round) for header in headers} == {("dk_1", 2)}
    assert len({header.file_id for header in headers}) == 100
    assert forms.new_header("dk_2", NOTES).key_name == "dk_2"


def test_two_files_and_two_data_keys_encrypt_one_page_differently() -> None:
    page = b"x" * HEADER_SIZE
    one, two = HEADER, replace(HEADER, file_id=bytes(16))
    third = replace(HEADER, key_name="dk_2")
    assert len({bytes(page_cipher(STRICT.file_key(header)).encrypt(0, page)) for header in (one, two, third)}) == 3


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        ("base/16384/16385", relation(16385)),
        ("base/16384/16385.3", relation(16385, segment=3)),
        ("base/16384/16385_fsm", relation(16385, fork=1)),
        ("base/16384/16385_vm.1", relation(16385, fork=2, segment=1)),
        ("base/16384/16385_init", relation(16385, fork=3)),
        ("15/main/base/5/1259", relation(1259, database=5)),
        ("global/1262", relation(1262, database=0)),
        ("pg_tblspc/16500/PG_15_202209061/16384/16385", relation(16385)),
        ("pg_wal/000000010000000000000001", of_class(FileClass.WAL)),
        ("postgresql.conf", named(b"postgresql.conf")),
        ("base/16384/.16385.Ab1Xyz", of_class(FileClass.DATABASE)),
        ("notes.txt", NOTES),
        *(
            (path, named(path.encode()))
            for path in (
                "global/pg_control",
                "15/main/global/pg_control",
                "pg_xact/0000",
                "pg_multixact/offsets/0001",
                "pg_multixact/members/0000",
                "pg_commit_ts/0000",
                "pg_subtrans/00FF",
                "pg_notify/0000",
                "pg_serial/0000",
                "pg_hba.conf",
                "postgresql.auto.conf",
                "conf.d/00-first.conf",
                "PG_VERSION",
                "base/5/PG_VERSION",
                "base/5/pg_filenode.map",
                "global/pg_filenode.map",
                "pg_twophase/000002F1",
                "postmaster.pid",
                "standby.signal",
            )
        ),
    ],
)
def test_a_file_is_bound_to_its_numbers_its_name_or_its_class(path: str, identity: Identity) -> None:
    assert identity_at(path) == identity


def test_a_file_in_another_ones_place_is_a_mismatch_that_names_both() -> None:
    with pytest.raises(IdentityMismatch, match=r"16385 of database 16384.*16386_fsm\.1 of database 16384"):
        check_identity(HEADER, relation(16386, fork=1, segment=1))
    with pytest.raises(IdentityMismatch):
        check_identity(HEADER, NOTES)
    check_identity(HEADER, relation(16385))
    check_identity(HEADER.bound_to(ANY_PLACE), relation(16386))
