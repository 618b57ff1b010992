"""What scripts/bench is made with: running programs, mounting, and the images of scripts/make-bench-images."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
FACTS = r"-type d -printf '%P %m %U %G %T@\n' -o -printf '%P %y %m %U %G %s %T@ %l\n'"
LISTING = f"find . -mindepth 1 {FACTS} | LC_ALL=C sort"
CONTENTS = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat"


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


def said(*command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout.strip()


def seconds(*command, **options):
    """How long a command takes whose output nobody reads."""
    start = time.perf_counter()
    run(*command, stdout=subprocess.DEVNULL, **options)
    return time.perf_counter() - start


def piped(script):
    """A shell command, of which no part may fail."""
    return ("bash", "-c", f"set -euo pipefail; {script}")


def progress(text):
    """What is going on, for who waits at a terminal; the next line takes its place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def empty_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


@contextlib.contextmanager
def running(*command, **options):
    """A program in the background, ended when no longer needed."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def mountpoint(parent):
    """A directory to mount on, on which nothing is left mounted."""
    path = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix="mnt-"))
    try:
        yield path
    finally:
        # Where its daemon died, only this list still knows of a mount.
        if f" {path} " in pathlib.Path("/proc/self/mounts").read_text():
            run("umount", "-l", path)
        path.rmdir()


class Image:
    """One of the images of scripts/make-bench-images."""

    def __init__(self, data, name):
        self.layout = data / name
        # It may be that of another one.
        self.tree = (data / f"{name}.tree").resolve()
        self.squashfs = data / f"{name}.squashfs"
        descriptor = json.loads((self.layout / "index.json").read_text())["manifests"][0]
        manifest = json.loads(self.blob(descriptor["digest"]).read_text())
        config = json.loads(self.blob(manifest["config"]["digest"]).read_text())
        self.layers = [self.blob(layer["digest"]) for layer in manifest["layers"]]
        self.diff_ids = config["rootfs"]["diff_ids"]

    @property
    def layer(self):
        """The first, or only one."""
        return self.layers[0]

    def blob(self, digest):
        return self.layout / "blobs" / digest.replace(":", "/")


def number(value):
    """Three digits that mean something."""
    if isinstance(value, int):
        return f"{value:,}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
