"""Files of ours in folders that hold anything: links, pipes, other people's files, names that cannot be."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from core.system import files
from core.system.files import (
    Folder,
    copy,
    delete,
    delete_folder,
    make_folder,
    open_in_place,
    open_to_append,
    open_to_read,
    read_limited,
    replacing,
    write_atomic,
)

LINK = "is a link, which is not followed here"


@pytest.fixture
def victim(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "bashrc").write_text("mine")
    yield home / "bashrc"
    assert (home / "bashrc").read_text() == "mine"
    assert [path.name for path in home.iterdir()] == ["bashrc"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_and_for_its_owner_alone(folder):
    (folder / "a.json").write_text("old")
    write_atomic(folder / "a.json", b"new")
    assert (folder / "a.json").read_bytes() == b"new"
    assert mode(folder / "a.json") == 0o600
    assert os.listdir(folder) == ["a.json"]


def test_the_umask_decides_where_that_is_set(folder, monkeypatch):
    monkeypatch.setenv(files.SHARED_VARIABLE, "1")
    before = os.umask(0o027)
    try:
        write_atomic(folder / "a", b"")
        make_folder(folder / "b" / "c")
    finally:
        os.umask(before)
    assert (mode(folder / "a"), mode(folder / "b"), mode(folder / "b" / "c")) == (0o640, 0o750, 0o750)


def test_what_is_not_private_keeps_the_mode_it_had(folder):
    (folder / "a").write_text("old")
    (folder / "a").chmod(0o664)
    write_atomic(folder / "a", b"new", private=False)
    assert mode(folder / "a") == 0o664


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(folder):
    (folder / "a").write_text("old")
    with pytest.raises(TypeError), replacing(folder / "a") as file:
        file.writelines([b"half", None])
    assert (folder / "a").read_text() == "old"
    assert os.listdir(folder) == ["a"]


def test_temporary_names_are_new_and_cannot_be_guessed(folder, monkeypatch, victim):
    names = {files._temporary_name("a.json") for _ in range(100)}
    assert len(names) == 100
    # Even a name that was guessed, and planted as a link, is not followed.
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (folder / ".a.json.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomic(folder / "a.json", b"attack")


@pytest.mark.parametrize("name", ["x" * 255, "ж" * 127])
def test_a_name_as_long_as_the_system_allows_can_be_replaced(folder, name):
    write_atomic(folder / name, b"new")
    assert (folder / name).read_bytes() == b"new"


@pytest.mark.parametrize("dangling", [False, True])
def test_no_link_is_followed(folder, victim, dangling):
    target = victim.with_name("new") if dangling else victim
    (folder / "link").symlink_to(target)
    for use in (
        lambda path: open_to_read(path),
        lambda path: read_limited(path, 100),
        lambda path: open_in_place(path),
        lambda path: open_in_place(path, os.O_TRUNC),
        lambda path: open_to_append(path),
        lambda path: make_folder(path),
        lambda path: copy(path, folder / "copy"),
    ):
        with pytest.raises(OSError, match=LINK) as caught:
            use(folder / "link")
        assert caught.value.errno == errno.ELOOP
    write_atomic(folder / "link", b"ours")  # the link goes, its target stays
    assert (folder / "link").read_bytes() == b"ours"
    assert not (folder / "link").is_symlink()


def test_links_that_the_user_made_are_followed_where_that_is_asked_for(folder, victim):
    (folder / "link").symlink_to(victim)
    assert read_limited(folder / "link", 4, follow_links=True) == b"mine"


def test_a_folder_that_is_a_link_is_refused(folder, victim):
    (folder / "control").symlink_to(victim.parent)
    with pytest.raises(OSError, match=LINK):
        Folder(folder / "control")
    with pytest.raises(OSError, match=LINK):
        make_folder(folder / "control")
    assert delete_folder(folder / "control", lambda name: True) == 0


def test_deleting_takes_the_link_and_not_its_target(folder, victim):
    (folder / "link").symlink_to(victim)
    delete(folder / "link")
    assert os.listdir(folder) == []
    with pytest.raises(FileNotFoundError):
        delete(folder / "link")
    delete(folder / "link", missing_ok=True)
    delete(folder / "gone" / "link", missing_ok=True)


def test_a_folder_loses_only_what_is_ours(folder, victim):
    cache = folder / "cache"
    (cache / "tokens-1").mkdir(parents=True)
    (cache / "tokens-1" / "tokens-0.bin").write_bytes(b"x" * 10)
    (cache / "tokens-2").symlink_to(victim.parent)
    (cache / "tokens-3").symlink_to(victim)
    (cache / "notes.txt").write_text("mine")
    assert delete_folder(cache, lambda name: name.startswith("tokens-")) == 10
    assert os.listdir(cache) == ["notes.txt"]
    (cache / "notes.txt").unlink()
    delete_folder(cache, lambda name: False)
    assert not cache.exists()


def test_special_files_are_refused_without_waiting(folder):
    os.mkfifo(folder / "pipe")
    for use in (
        lambda path: open_to_read(path),
        lambda path: open_in_place(path),
        lambda path: write_atomic(path, b""),
    ):
        with pytest.raises(OSError, match="is a named pipe, not a file"):
            use(folder / "pipe")
    with pytest.raises(OSError, match="is a device, not a file"):
        write_atomic("/dev/null", b"")
    with pytest.raises(OSError, match="is a device, not a file"):
        read_limited("/dev/zero", 10)
    with pytest.raises(OSError, match="is a folder, not a file"):
        write_atomic(folder, b"")
    assert stat.S_ISFIFO(os.stat(folder / "pipe").st_mode)


def test_a_read_has_a_limit(folder):
    (folder / "a").write_bytes(b"x" * 100)
    assert len(read_limited(folder / "a", 100)) == 100
    with pytest.raises(OSError, match="has 100 bytes, and 99 are the most"):
        read_limited(folder / "a", 99)


def test_a_file_with_a_second_name_is_not_written_in_place(folder, victim):
    os.link(victim, folder / "events.jsonl")
    with pytest.raises(OSError, match="has a second name"):
        open_in_place(folder / "events.jsonl", os.O_TRUNC)
    write_atomic(folder / "events.jsonl", b"new")  # a replacement leaves the other name alone
    with open_to_append(folder / "events.jsonl") as file:
        file.write(b"er")
    assert (folder / "events.jsonl").read_bytes() == b"newer"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_other_users_are_not_written(folder, monkeypatch):
    path = folder / "run.lock"
    path.write_text("theirs")
    os.chown(path, 12345, -1)
    for use in (open_in_place, lambda path: write_atomic(path, b"")):
        with pytest.raises(PermissionError, match="belongs to another user; MAMBA_TUI_SHARED=1 allows that"):
            use(path)
    assert read_limited(path, 10) == b"theirs"
    monkeypatch.setenv(files.SHARED_VARIABLE, "1")
    os.close(open_in_place(path))
    monkeypatch.undo()
    # In a container a folder from outside and what lies in it belong to the same stranger.
    os.chown(folder, 12345, -1)
    os.close(open_in_place(path))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_cannot_be_is_an_error_in_words(folder, name):
    for use in (
        lambda path: open_to_read(path),
        lambda path: write_atomic(path, b""),
        lambda path: delete(path),
        lambda path: make_folder(path),
        lambda path: read_limited(path / "file", 1),
    ):
        with pytest.raises(OSError, match="has a character that no file name can have"):
            use(folder / name)


def test_a_name_is_one_step(folder):
    with Folder(folder) as opened:
        for name in ("..", ".", "", "a/b", "../x"):
            with pytest.raises(OSError, match="is not the name of a file"):
                opened.write_atomic(name, b"")
            with pytest.raises(OSError, match="is not the name of a file"):
                opened.delete(name)


def test_a_folder_is_held_while_its_name_goes_elsewhere(folder, victim):
    with Folder(folder) as opened:
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(victim.parent)
        opened.write_atomic("a", b"1")
        opened.move("a", "b")
        assert opened.names() == ["b"]
        assert opened.read_limited("b", 1) == b"1"
        assert opened.status("a") is None
    assert (folder.with_name("moved") / "b").read_bytes() == b"1"


def test_folders_are_made_with_those_above_them(folder):
    make_folder(folder / "a" / "b")
    make_folder(folder / "a" / "b")
    assert mode(folder / "a") == mode(folder / "a" / "b") == 0o700
    (folder / "file").write_text("")
    with pytest.raises(OSError):  # noqa: PT011 - the system's own words
        make_folder(folder / "file" / "c")
