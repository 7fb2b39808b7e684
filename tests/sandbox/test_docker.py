"""Containers, by a program that takes docker's words: no daemon can be had where tests run."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from docker_parts import FakeDocker, fake_docker
from lmlab.errors import UserError
from lmlab.sandbox import Box, Limits, Mount, SandboxFailure, choose_executor, docker
from lmlab.sandbox.archives import TooLarge, pack, replace_by
from lmlab.sandbox.bubblewrap import Bubblewrap
from lmlab.sandbox.docker import DEFAULT_IMAGE, Docker

_SMALL = Limits(timeout_s=30, memory_mib=256, processes=64, cpus=1.5, tmp_mib=16, disk_mib=32, output_mib=0.1)


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    """The stand-in."""
    if not Bubblewrap().probe().available:
        pytest.skip("the stand-in for docker needs bubblewrap")
    yield fake_docker(tmp_path_factory.mktemp("docker"), monkeypatch)
    docker._probe.cache_clear()


def test_a_run_is_a_container_of_its_own_without_rights(
    fake: FakeDocker, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://secret")
    results = tmp_path_factory.mktemp("results")
    (tmp_path / "old").write_text("old")
    with Docker().open(Box(tmp_path, image="an/image:1"), _SMALL) as session:
        script = "test -w /testbed && mv old new && echo $HTTPS_PROXY > /results/f; id -u"
        sink = io.BytesIO()
        result = session.run(["sh", "-c", script], sink=sink, mounts=[Mount(results, "/results", writable=True)])
    assert (result.exit_code, sink.getvalue()) == (0, b"1000\n")
    assert (tmp_path / "new").read_text() == "old" and not (tmp_path / "old").exists()
    assert (results / "f").read_text() == "\n"
    (command,) = fake.calls("create")
    name, label = command[command.index("--name") + 1], command[command.index("--label") + 1]
    expected = f"""--name {name} --label {label} --network none --hostname testbed --init --cap-drop ALL --security-opt
        no-new-privileges --user 1000:1000 --pids-limit 64 --cpus 1.5 --memory 256m --memory-swap 256m
        --ulimit nofile=4096:4096 --ulimit core=0 --ulimit fsize=33554432:33554432
        --tmpfs /tmp:rw,exec,nosuid,nodev,size=16m,mode=1777
        --tmpfs /home/user:rw,nosuid,nodev,size=16m,mode=0700,uid=1000,gid=1000
        --mount type=volume,dst=/testbed,volume-nocopy --workdir /testbed""".split()
    assert command[: len(expected)] == expected
    variables = command[len(expected) : command.index("--entrypoint")]
    assert variables[::2] == ["--env"] * (len(variables) // 2) and "PYTHONHASHSEED=0" in variables
    assert not any("PROXY" in each for each in variables)
    assert command[command.index("--entrypoint") :] == ["--entrypoint", "sh", "an/image:1", "-c", script]
    assert fake.calls("rm") == [["--force", "--volumes", name]] and fake.calls("kill") == []
    assert [each[-1] for each in fake.calls("cp")[:2]] == [f"{name}:/testbed", f"{name}:/"]


def test_a_run_whose_time_is_over_is_killed_as_a_container(fake: FakeDocker, tmp_path: Path) -> None:
    with Docker().open(Box(tmp_path, image="image"), _SMALL) as session:
        result = session.run(["sh", "-c", "echo before > f; sleep 60"], timeout=1)
    assert result.timed_out and result.exit_code is None and (tmp_path / "f").read_text() == "before\n"
    (killed,), (removed,) = fake.calls("kill"), fake.calls("rm")
    assert killed[-1] == removed[-1]


def test_what_cannot_be_had_is_said_by_its_name(fake: FakeDocker, tmp_path: Path) -> None:
    for image, command, said in (
        ("missing/image", "true", "could not make a container: .*pull access denied for missing/image"),
        ("image", "nothing-such", "'nothing-such' cannot be started in the container"),
    ):
        with (
            Docker().open(Box(tmp_path, image=image), _SMALL) as session,
            pytest.raises(SandboxFailure, match=said),
        ):
            session.run([command])
    with Docker().open(Box(tmp_path), _SMALL) as session:
        assert session.run(["true"]).exit_code == 0
    assert DEFAULT_IMAGE in fake.calls("create")[-1]
    assert {"memory", "processes", "cpus", "system calls"} <= set(Docker().probe().enforced)
    assert choose_executor("docker", require=["memory", "processes"]).name == "docker"
    (fake.folder / "no-daemon").touch()
    docker._probe.cache_clear()
    with pytest.raises(UserError, match="docker: no daemon answers .Cannot connect to the Docker daemon at unix"):
        choose_executor("docker")


def test_containers_of_dead_processes_are_removed(fake: FakeDocker, tmp_path: Path) -> None:
    with Docker().open(Box(tmp_path, image="image"), _SMALL) as session:
        session.run(["true"])
    import socket

    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    for name, owner in (("left", f"{socket.gethostname()}:{dead}"), ("other", f"elsewhere:{dead}")):
        docker._docker("create", "--name", name, "--label", f"{docker._OWNER}={owner}", "image", timeout=20)
    docker._remove_orphans.cache_clear()
    docker._remove_orphans()
    assert [each[-1] for each in fake.calls("rm")][1:] == ["left"]


def _archive(*entries: tuple[str, bytes | str]) -> bytes:
    """Files by their content, links by where they lead; names that begin with = are hard links."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name.lstrip("="))
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                entry.type = tarfile.LNKTYPE if name.startswith("=") else tarfile.SYMTYPE
                entry.linkname = content
                archive.addfile(entry)
    return data.getvalue()


def test_what_comes_out_of_a_container_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").write_text("secret")
    work, place = tmp_path / "work", tmp_path / "tar"
    place.write_bytes(
        _archive(
            ("t/a", b"a"), ("t/out", str(tmp_path)), ("t/out/written", b"x"), ("=t/copy", "t/a"), ("=t/no", "../secret")
        )
    )
    replace_by(place, work, 1000)
    assert not (tmp_path / "written").exists() and (work / "out" / "written").read_bytes() == b"x"
    assert (work / "copy").read_bytes() == b"a" and not (work / "no").exists()
    for name in ("t/../../x", "../x"):
        place.write_bytes(_archive((name, b"x")))
        with pytest.raises(SandboxFailure, match="leaves its folder"):
            replace_by(place, work, 1000)
    place.write_bytes(_archive(("t/a", bytes(2000))))
    with pytest.raises(TooLarge):
        replace_by(place, work, 1000)
    place.write_bytes(_archive(("t/a", bytes(600)), ("=t/copy", "t/a")))
    with pytest.raises(TooLarge):
        replace_by(place, work, 1000)
    place.write_bytes(_archive(("t/" + "d/" * 300 + "x", b"")))
    with pytest.raises(TooLarge):
        replace_by(place, work, 1000)
    place.write_bytes(b"nothing")
    with pytest.raises(SandboxFailure, match="cannot be read"):
        replace_by(place, work, 1000)
    assert (work / "a").read_bytes() == b"a" and sorted(each.name for each in tmp_path.iterdir()) == [
        "secret",
        "tar",
        "work",
    ]


def test_a_folder_goes_in_and_comes_out_as_it_was(tmp_path: Path) -> None:
    work, place = tmp_path / "work", tmp_path / "tar"
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "program").write_text("x")
    (work / "a" / "b" / "program").chmod(0o755)
    (work / "link").symlink_to("a/b")
    (work / "empty").mkdir()
    with open(place, "wb") as file:
        pack(work, file, 1000, "testbed")
    with tarfile.open(place) as archive:
        assert {each.uid for each in archive} == {1000}
    (work / "late").touch()
    replace_by(place, work, 10_000)
    assert sorted(str(each.relative_to(work)) for each in work.rglob("*")) == [
        "a",
        "a/b",
        "a/b/program",
        "empty",
        "link",
    ]
    assert (work / "a" / "b" / "program").stat().st_mode & 0o777 == 0o755 and (work / "link").is_symlink()
