"""A stand-in for the program `docker` where there is no daemon: it takes the options that lmlab gives and no others,
notes every call, and runs containers by bubblewrap. FAKE_DOCKER names its folder.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_DOCKER"])
PREFIXES = os.environ["FAKE_DOCKER_PREFIXES"].split(":")  # of an interpreter that every image has
VALUES = {
    "--name", "--label", "--network", "--hostname", "--cap-drop", "--security-opt", "--user", "--pids-limit", "--cpus",
    "--memory", "--memory-swap", "--ulimit", "--tmpfs", "--mount", "--workdir", "--env", "--entrypoint",
}  # fmt: skip
FLAGS = {"--init", "--interactive", "--rm"}


def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)


def options(arguments):
    """Options and what follows them."""
    found, place = {}, 0
    while arguments[place].startswith("-"):
        name = arguments[place]
        if name in FLAGS:
            found[name], place = True, place + 1
        elif name in VALUES:
            found.setdefault(name, []).append(arguments[place + 1])
            place += 2
        else:
            fail(f"unknown flag: {name}", 125)
    return found, arguments[place:]


def create(arguments):
    found, rest = options(arguments)
    if rest[0].startswith("missing"):
        fail(f"Unable to find image '{rest[0]}' locally\nError response from daemon: pull access denied for {rest[0]}")
    box = STATE / "containers" / found["--name"][0]
    (box / "root" / "testbed").mkdir(parents=True)
    image = STATE / "images" / rest[0].replace("/", "_").replace(":", "_")
    if image.is_dir():
        shutil.copytree(image, box / "root", dirs_exist_ok=True, symlinks=True)
    if any("volume-nocopy" in each for each in found.get("--mount", ())):
        shutil.rmtree(box / "root" / "testbed")
        (box / "root" / "testbed").mkdir()
    (box / "options.json").write_text(json.dumps([found, rest]))
    print("0123456789ab")


def copy(arguments):
    source, target = arguments
    if source == "-":
        name, _, path = target.partition(":")
        into = STATE / "containers" / name / "root" / path.lstrip("/")
        if not into.is_dir():
            fail(f"Error response from daemon: Could not find the file {path} in container {name}")
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for each in archive:
                # Users of the archive are none here: bubblewrap shows files of this one as those of the container's
                each.uid, each.gid, each.uname, each.gname = os.getuid(), os.getgid(), "", ""
                archive.extract(each, into, set_attrs=not each.issym(), filter="fully_trusted")
    else:
        name, _, path = source.partition(":")
        place = STATE / "containers" / name / "root" / path.lstrip("/")
        if not place.exists():
            fail(f"Error response from daemon: Could not find the file {path} in container {name}")
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            try:
                archive.add(place, place.name)
            except (OSError, RecursionError):
                fail("Error response from daemon: file name too long")


def resident(pid):
    found, total = [pid], 0
    for each in found:
        with contextlib.suppress(OSError, ValueError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * 4096
            for task in os.listdir(f"/proc/{each}/task"):
                found += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
    return total


def start(arguments):
    box = STATE / "containers" / arguments[-1]
    found, (_, *rest) = json.loads((box / "options.json").read_text())
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    command += ["--uid", found["--user"][0].split(":")[0], "--hostname", found["--hostname"][0]]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for each in found["--tmpfs"]:
        path, _, settings = each.partition(":")
        size = next(part for part in settings.split(",") if part.startswith("size="))[5:-1]
        command += ["--size", str(int(size) << 20), "--tmpfs", path]
    command += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    command += ["--symlink", "usr/lib64", "/lib64", "--ro-bind", "/etc/passwd", "/etc/passwd"]
    for each in PREFIXES:
        command += ["--ro-bind", each, each]
    for each in (box / "root").iterdir():
        writable = each.name == "testbed" or each.stat().st_mode & 0o200
        command += ["--bind" if writable else "--ro-bind", str(each), f"/{each.name}"]
    for each in found["--env"]:
        key, _, value = each.partition("=")
        command += ["--setenv", key, f"{PREFIXES[0]}/bin:{value}" if key == "PATH" else value]
    program = found["--entrypoint"][0]
    if shutil.which(program, path=f"{PREFIXES[0]}/bin:/usr/local/bin:/usr/bin") is None:
        told = {"Error": f'exec: "{program}": executable file not found', "StartedAt": "0001-01-01T00:00:00Z"}
        (box / "state.json").write_text(json.dumps(told | {"ExitCode": 127}))
        fail(f"Error response from daemon: {told['Error']}", 127)
    command += ["--chdir", "/testbed", program, *rest]
    reads = "--interactive" in arguments and found.get("--interactive")
    process = subprocess.Popen(command, stdin=None if reads else subprocess.DEVNULL)
    most, killed = int(found["--memory"][0][:-1]) << 20, False
    while process.poll() is None:
        if resident(process.pid) > most:
            process.kill()
            killed = True
        time.sleep(0.02)
    code = 137 if killed else process.returncode if process.returncode >= 0 else 128 - process.returncode
    (box / "state.json").write_text(
        json.dumps({"ExitCode": code, "OOMKilled": killed, "StartedAt": "2026-01-01T00:00:00Z", "Error": ""})
    )
    sys.exit(code)


def main(arguments):
    with open(STATE / "calls.jsonl", "a") as file:
        file.write(json.dumps(arguments) + "\n")
    verb, rest = arguments[0], arguments[1:]
    if verb == "info":
        told = {"ServerVersion": "28.2.2", "OSType": "linux", "MemoryLimit": True, "PidsLimit": True}
        told |= {"CpuCfsQuota": True, "CgroupVersion": "2", "SecurityOptions": ["name=seccomp,profile=builtin"]}
        if (STATE / "no-daemon").exists():
            told = {"ServerErrors": ["Cannot connect to the Docker daemon at unix:///var/run/docker.sock."]}
        print(json.dumps(told))
        sys.exit("ServerErrors" in told)
    elif verb == "create":
        create(rest)
    elif verb == "cp":
        copy(rest)
    elif verb == "start":
        start(rest)
    elif verb == "inspect":
        place = STATE / "containers" / rest[-1] / "state.json"
        print(place.read_text() if place.exists() else json.dumps({"ExitCode": 0, "StartedAt": "2026"}))
    elif verb == "rm":
        subprocess.run(["rm", "-rf", str(STATE / "containers" / rest[-1])], check=True)  # however deep
    elif verb == "ps":
        for each in (STATE / "containers").glob("*"):
            print(each.name, json.loads((each / "options.json").read_text())[0]["--label"][0].partition("=")[2])
    elif verb == "build":
        name = rest[rest.index("--tag") + 1]
        (STATE / "built").mkdir(exist_ok=True)
        (STATE / "built" / name.replace(":", "_")).write_text(sys.stdin.read())
    elif verb == "image":
        if not (STATE / "built" / rest[-1].replace(":", "_")).exists():
            fail(f"Error: No such image: {rest[-1]}")
        print("123456789" if "{{.Size}}" in rest else "sha256:0")
    elif verb == "run":
        _, (_, *command) = options(rest)
        if command[-1].startswith("import sysconfig"):
            print("/packages")
        else:
            print("pytest==9.0.0")
    elif verb != "kill":
        fail(f"docker: '{verb}' is not a docker command.")


main(sys.argv[1:])
