"""probes.py ROOT SCRATCH [UID]: system calls on the tree at ROOT, one line each: what was done, and what came of it.

Two file systems with one tree are the same to programs where this prints the same. What can never be the same (inode
and device numbers, how blocks are allocated, the order of a directory) is not printed. With UID it is that user who
asks. SCRATCH is a directory of another file system that he may write to.
"""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import signal
import stat
import struct
import subprocess
import sys

root, scratch = sys.argv[1:3]
# Where only root may pass, the way is behind us before we are somebody else.
os.chdir(root)
start = os.open(".", os.O_RDONLY)
everything = sorted(os.path.join(place, name) for place, dirs, files in os.walk(".") for name in dirs + files)
if len(sys.argv) > 3:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[3])] * 3)
    os.setresuid(*[int(sys.argv[3])] * 3)
libc = ctypes.CDLL(None, use_errno=True)
R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def probe(name, action, *arguments):
    """Prints what `action` returns, or its error."""
    try:
        result = action(*arguments)
        if isinstance(result, bytes) and len(result) > 100:
            result = f"{len(result)} bytes {hashlib.md5(result).hexdigest()}"
    except OSError as error:
        result = errno.errorcode.get(error.errno, error.errno)
    shown = [str(argument) for argument in arguments if not callable(argument)]
    print(" ".join([name, *shown]) + ":", result)


def opened(path, flags, use=lambda fd: "opened", mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        return use(fd)
    finally:
        os.close(fd)


def in_child(action):
    """How a child that does this ends: a crash is a result too."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action() or 0)
        except OSError as error:
            os._exit(100 + error.errno % 100)
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return os.WEXITSTATUS(status)


def syscall(number, *arguments):
    return checked(libc.syscall(number, *arguments))


# Everything that there is, with its attributes.

def attributes(path):
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    facts = [oct(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, found.st_blksize]
    if kind != stat.S_IFDIR:
        facts += [found.st_nlink, found.st_size]
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        facts += [os.major(found.st_rdev), os.minor(found.st_rdev)]
    return facts


for path in [".", *everything]:
    probe("lstat", attributes, path)
    probe("listxattr", lambda path: sorted(os.listxattr(path, follow_symlinks=False)), path)
    for mode in ("R_OK", "W_OK", "X_OK"):
        probe("access", lambda path, mode: checked(libc.access(os.fsencode(path), getattr(os, mode))), path, mode)
probe("inode numbers of links are one", lambda: os.stat("dense").st_ino == os.stat("hard").st_ino)

# What would change something.

def polled(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return poll.poll(0)


for path in ("dense", "dir", "fifo", "null", "to-dense", "dangling", "missing", "locked", "locked/file", "dense/"):
    for name, flags in [
        ("O_RDONLY", R), ("O_WRONLY", W), ("O_RDWR", RW), ("O_APPEND", W | os.O_APPEND), ("O_TRUNC", R | os.O_TRUNC),
        ("O_CREAT", R | os.O_CREAT), ("O_CREAT|O_EXCL", W | os.O_CREAT | os.O_EXCL), ("O_CREAT|O_TRUNC",
        W | os.O_CREAT | os.O_TRUNC), ("O_TMPFILE", W | os.O_TMPFILE), ("O_NOFOLLOW", R | os.O_NOFOLLOW),
        ("O_DIRECTORY", R | os.O_DIRECTORY), ("O_PATH", os.O_PATH), ("O_PATH|O_NOFOLLOW", os.O_PATH | os.O_NOFOLLOW),
        ("O_NOATIME", R | os.O_NOATIME), ("O_SYNC", R | os.O_SYNC), ("O_DIRECT", R | os.O_DIRECT),
    ]:
        probe(f"open {name}", lambda path: opened(path, flags | os.O_NONBLOCK), path)

for path in ("dense", "dir", "to-dense", "fifo", "missing", "missing/below", "dense/below"):
    for name, action in [
        ("unlink", os.unlink), ("rmdir", os.rmdir), ("mkdir", os.mkdir), ("mkfifo", os.mkfifo),
        ("rename away", lambda path: os.rename(path, "other")), ("rename onto", lambda path: os.rename("empty", path)),
        ("rename out", lambda path: os.rename(path, scratch + "/out")),
        ("link", lambda path: os.link(path, "other")), ("link out", lambda path: os.link(path, scratch + "/out")),
        ("symlink", lambda path: os.symlink("x", path)), ("chmod", lambda path: os.chmod(path, 0o777)),
        ("chown", lambda path: os.chown(path, 1, 1)), ("lchown", lambda path: os.lchown(path, 1, 1)),
        ("utimes", lambda path: os.utime(path, (1, 1))), ("truncate", lambda path: os.truncate(path, 1)),
        ("setxattr", lambda path: os.setxattr(path, "user.x", b"x")),
        ("removexattr", lambda path: os.removexattr(path, "user.note")),
        ("mknod", lambda path: os.mknod(path, 0o600 | stat.S_IFREG)),
        ("chdir", lambda path: os.chdir(path) or os.fchdir(start)),
    ]:
        probe(name, action, path)
for name, action in [
    ("fchmod", lambda fd: os.fchmod(fd, 0o777)), ("fchown", lambda fd: os.fchown(fd, 1, 1)),
    ("ftruncate", lambda fd: os.ftruncate(fd, 1)), ("write", lambda fd: os.write(fd, b"x")),
    ("fallocate", lambda fd: os.posix_fallocate(fd, 0, 1)), ("futimes", lambda fd: os.utime(fd, (1, 1))),
    ("fsetxattr", lambda fd: os.setxattr(fd, "user.x", b"x")), ("fsync", os.fsync), ("fdatasync", os.fdatasync),
    ("syncfs", lambda fd: checked(libc.syncfs(fd))),
    ("fadvise", lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)),
    ("readahead", lambda fd: checked(libc.readahead(fd, ctypes.c_long(0), ctypes.c_size_t(100)))),
    ("read of a directory", lambda fd: opened("dir", R, lambda fd: os.read(fd, 10))),
    ("poll", lambda fd: [event for _, event in polled(fd)]),
]:
    probe(name, lambda: opened("dense", R, action))


# Reading.

SIZE = os.stat("dense").st_size
for offset, length in [(0, 10), (4095, 2), (SIZE - 3, 10), (SIZE, 10), (SIZE + 10**12, 10), (0, 1 << 22), (-1, 1)]:
    probe("pread", lambda offset, length: opened("dense", R, lambda fd: os.pread(fd, length, offset)), offset, length)
probe("readv", lambda: opened("dense", R, lambda fd: os.preadv(fd, [bytearray(7), bytearray(9000)], 5)))
probe("read without a right", lambda: opened("dense", os.O_PATH, lambda fd: os.read(fd, 1)))


def sent(fd):
    with open(scratch + "/sent", "w+b") as out:
        while os.sendfile(out.fileno(), fd, None, 1 << 20):
            pass
        out.seek(0)
        return out.read()


def copied(fd):
    with open(scratch + "/copied", "w+b") as out:
        while os.copy_file_range(fd, out.fileno(), 1 << 20):
            pass
        out.seek(0)
        return out.read()


def spliced(fd):
    ours, theirs = os.pipe()
    data = b""
    while piece := os.splice(fd, theirs, 10000):
        data += os.read(ours, piece)
    os.close(ours), os.close(theirs)
    return data


for path in ("dense", "sparse", "empty"):
    for name, action in [("sendfile", sent), ("copy_file_range", copied), ("splice", spliced)]:
        probe(name, lambda path: opened(path, R, action), path)


def direct(offset, length, misplaced=0):
    with mmap.mmap(-1, 1 << 20) as memory:
        with memoryview(memory) as view, view[misplaced:misplaced + length] as part:
            got = opened("dense", R | os.O_DIRECT, lambda fd: os.preadv(fd, [part], offset))
            return got, hashlib.md5(part[:got]).hexdigest()


for offset, length in [(0, 4096), (4096, 65536), (SIZE // 4096 * 4096, 4096), (0, 1 << 20)]:
    probe("aligned O_DIRECT", direct, offset, length)
for offset, length, misplaced in [(1, 4096, 0), (0, 100, 0), (0, 4096, 1)]:
    probe("unaligned O_DIRECT", direct, offset, length, misplaced)

# Where data and holes are.

for path in ("dense", "sparse", "hole", "empty", "tail"):
    size = os.stat(path).st_size
    places = sorted({0, 1, 4096, 65535, 65536, 131071, 131072, 200000, size - 1, size, size + 1, -1})
    for name, whence in [("SEEK_DATA", os.SEEK_DATA), ("SEEK_HOLE", os.SEEK_HOLE)]:
        for offset in places:
            probe(name, lambda path, offset: opened(path, R, lambda fd: os.lseek(fd, offset, whence)), path, offset)
    for offset in (-1, 0, 5):
        probe("SEEK_END", lambda path, offset: opened(path, R, lambda fd: os.lseek(fd, offset, 2)), path, offset)
    probe("a whence that is none", lambda: opened(path, R, lambda fd: os.lseek(fd, 0, 9)))

# Mapping.

READ, WRITE, EXEC, SHARED, PRIVATE = 1, 2, 4, 1, 2


def mapped(path, flags, protection, length=0, use=bytes):
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), length, flags, protection) as memory:
            return use(memory)


def changed(memory):
    memory[5:10] = b"other"
    return bytes(memory[:20])


for path in ("dense", "sparse"):
    for name, flags in [("MAP_SHARED", SHARED), ("MAP_PRIVATE", PRIVATE)]:
        for protection in (READ, READ | EXEC, READ | WRITE):
            probe("mmap", lambda path, name, protection: mapped(path, flags, protection), path, name, protection)
probe("writing to a private mapping", lambda: mapped("dense", PRIVATE, READ | WRITE, use=changed))
probe("it changed nothing", lambda: opened("dense", R, lambda fd: os.read(fd, 20)))


def beyond(offset):
    """Reads in the last page of a file, or behind it."""
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open("dense", R)
    start = libc.mmap(None, ctypes.c_size_t(SIZE + 8192), READ, SHARED, fd, 0)
    return ctypes.string_at(start + offset, 1)[0]


probe("the last byte of a mapping", in_child, lambda: beyond(SIZE - 1))
probe("behind the end, in its page", in_child, lambda: beyond(SIZE))
probe("behind the last page", in_child, lambda: beyond(SIZE // 4096 * 4096 + 4096))
for advice in ("MADV_WILLNEED", "MADV_SEQUENTIAL", "MADV_DONTNEED", "MADV_RANDOM"):
    probe(advice, lambda: mapped("dense", SHARED, READ, use=lambda memory: memory.madvise(getattr(mmap, advice))))

# Directories.

GETDENTS64 = 217 if os.uname().machine == "x86_64" else 61


def getdents(path, length):
    """Names and types in `path`, read with a buffer of `length` bytes."""
    found = []
    fd = os.open(path, R | os.O_DIRECTORY)
    buffer = ctypes.create_string_buffer(length)
    try:
        while got := syscall(GETDENTS64, fd, buffer, length):
            at = 0
            while at < got:
                ino, _, size, kind = struct.unpack_from("=QqHB", buffer.raw, at)
                name = buffer.raw[at + 19:at + size].split(b"\0")[0].decode()
                same = name == ".." or ino == os.lstat(f"{path}/{name}").st_ino
                found.append((name, kind, same))
                at += size
    finally:
        os.close(fd)
    return hashlib.md5(repr(sorted(found)).encode()).hexdigest(), len(found)


for path in ("many", ".", "dir", "no-directories"):
    for length in (1, 24, 64, 280, 300, 4096, 1 << 20):
        probe("getdents", getdents, path, length)
probe("getdents of a file", lambda: opened("dense", R, lambda fd: syscall(GETDENTS64, fd, b" " * 100, 100)))


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16),
                ("kind", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


def told():
    """Whether seekdir goes to each place that telldir tells, in any order, and rewinddir to the start."""
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(b"many"))

    def following():
        entry = libc.readdir(stream)
        return ctypes.cast(entry, ctypes.POINTER(Dirent)).contents.name if entry else None

    places = []
    while True:
        place = libc.telldir(stream)
        if (name := following()) is None:
            break
        places.append((place, name))
    for place, name in places[::-7] + places[::5]:
        libc.seekdir(stream, ctypes.c_long(place))
        if following() != name:
            return name
    libc.rewinddir(stream)
    again = following() == places[0][1]
    libc.closedir(stream)
    return len(places), again


probe("telldir, seekdir, rewinddir", told)
probe("lseek of a directory", lambda: opened("many", R, lambda fd: os.lseek(fd, 0, os.SEEK_SET)))

# Names.

for length in (255, 256, 4096):
    probe("a name of", lambda length: os.lstat("n" * length), length) if length > 255 else \
        probe("a name of", lambda length: os.lstat("n" * length).st_size, length)
    probe("nothing with a name of", lambda length: os.lstat("x" * length), length)
    probe("nothing, below, with a name of", lambda length: os.lstat("dir/" + "x" * length), length)
for path in ("dense/", "dense/.", "dense/..", "to-dense/", "to-dir/", "to-dir/.", "dangling", "dangling/", "loop",
             "dir/../dense", "dir/./inner", "missing/..", "", "fifo/", ".//dir//inner", "dir/inner\0"[:9]):
    probe("stat", lambda path: oct(os.stat(path).st_mode), path)
    probe("readlink", lambda path: os.readlink(path), path)
for path, length in [("to-dense", 3), ("to-dense", 0), ("dense", 100), ("far", 5000)]:
    probe("readlink with a buffer of", lambda path, length: checked(libc.readlink(os.fsencode(path),
          ctypes.create_string_buffer(length + 1), ctypes.c_size_t(length))), path, length)

OPENAT2 = 437
resolve = {"NO_XDEV": 1, "NO_MAGICLINKS": 2, "NO_SYMLINKS": 4, "BENEATH": 8, "IN_ROOT": 16, "CACHED": 32}


def openat2(path, how, flags=R):
    here = os.open(".", os.O_PATH)
    try:
        request = struct.pack("=QQQ", flags, 0, resolve[how])
        fd = syscall(OPENAT2, here, os.fsencode(path), request, len(request))
        os.close(fd)
        return "opened"
    finally:
        os.close(here)


for how in resolve:
    for path in ("dense", "to-dense", "absolute", "upward", "dir/inner", "dir/../dense", "../x", "missing", "loop"):
        probe(f"openat2 {how}", lambda path: openat2(path, how), path)

# Extended attributes.

for path in ("noted", "dense", "dir", "to-dense", "fifo", "guarded", "defaults", "capable", "private"):
    for name in ("user.note", "user.big", "user.missing", "trusted.secret", "security.capability", "user.peelfs.nothing",
                 "system.posix_acl_access", "system.posix_acl_default", ""):
        for follow in (True, False):
            probe("getxattr", lambda path, name, follow: os.getxattr(path, name, follow_symlinks=follow), path, name,
                  follow)
    for name in ("system.other", "nothing", "user."):
        probe("getxattr of no namespace", os.getxattr, path, name)
for length in (0, 1, 3, 4, 100):
    probe("getxattr into", lambda length: checked(libc.getxattr(b"noted", b"user.note",
          ctypes.create_string_buffer(length + 1), ctypes.c_size_t(length))), length)
    probe("listxattr into", lambda length: checked(libc.listxattr(b"noted", ctypes.create_string_buffer(length + 1),
          ctypes.c_size_t(length))) if length in (1, 3) or os.getuid() == 0 else None, length)

# Running.

for path in ("bin/true", "bin/script", "bin/plain", "bin/owner", "bin/text", "bin/lost", "dir", "bin/to-true", "null"):
    probe("execve", lambda path: subprocess.run([f"./{path}"], stdout=subprocess.PIPE).stdout, path)
probe("fexecve", lambda: opened("bin/true", R, lambda fd: in_child(lambda: os.execve(fd, ["true"], {}))))
probe("a file that runs is busy, or read-only", lambda: opened("bin/true", W))

# Locks.

for name, flags in [("LOCK_SH", fcntl.LOCK_SH), ("LOCK_EX", fcntl.LOCK_EX)]:
    for path in ("dense", "dir"):
        probe("flock", lambda path, name: opened(path, R, lambda fd: (
            fcntl.flock(fd, flags | fcntl.LOCK_NB), in_child(lambda: opened(path, R, lambda fd: fcntl.flock(
                fd, fcntl.LOCK_SH | fcntl.LOCK_NB))))), path, name)


def locked(kind, command=fcntl.F_SETLK):
    def lock(fd, kind):
        fcntl.fcntl(fd, command, struct.pack("=hhqqi4x", kind, 0, 0, 0, 0))

    def use(fd):
        lock(fd, kind)
        return in_child(lambda: opened("dense", R, lambda fd: lock(fd, kind)))
    return opened("dense", R, use)


for name, kind in [("F_RDLCK", fcntl.F_RDLCK), ("F_WRLCK", fcntl.F_WRLCK)]:
    probe("fcntl lock", lambda name: locked(kind), name)
    probe("open file description lock", lambda name: locked(kind, 37), name)
    probe("lease", lambda name: opened("dense", R, lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)), name)

# Being told.


def watched(path, action):
    fd = checked(libc.inotify_init1(os.O_NONBLOCK))
    try:
        checked(libc.inotify_add_watch(fd, os.fsencode(path), 0xfff))
        action()
        events, at, data = [], 0, os.read(fd, 65536)
        while at < len(data):
            _, mask, _, length = struct.unpack_from("=iIII", data, at)
            events.append((hex(mask), data[at + 16:at + 16 + length].rstrip(b"\0")))
            at += 16 + length
        return events
    finally:
        os.close(fd)


probe("inotify of a file", watched, "dense", lambda: opened("dense", R, lambda fd: os.read(fd, 1)))
probe("inotify of a directory", watched, "dir", lambda: opened("dir/inner", R, lambda fd: os.read(fd, 1)))
probe("inotify of a listing", watched, "dir", lambda: os.listdir("dir"))

# Fifos and devices.

probe("a fifo to write to, without a reader", lambda: opened("fifo", W | os.O_NONBLOCK))
probe("a fifo carries bytes", lambda: opened("fifo", RW, lambda fd: (os.write(fd, b"through"), os.read(fd, 10))))
probe("what is written to null", lambda: opened("null", RW, lambda fd: (os.write(fd, b"x"), os.read(fd, 1))))
probe("a block device", lambda: opened("loop0", R | os.O_NONBLOCK))

# The file system itself.

RELATIME = 0x1000
whole = os.statvfs(".")
probe("statvfs", lambda: (whole.f_namemax, whole.f_bsize, whole.f_frsize, whole.f_flag & ~RELATIME))
FIONREAD, FIGETBSZ = 0x541b, 2
probe("FIONREAD", lambda: opened("dense", R, lambda fd: fcntl.ioctl(fd, FIONREAD, b"\0" * 4)))
probe("FIGETBSZ", lambda: opened("dense", R, lambda fd: fcntl.ioctl(fd, FIGETBSZ, b"\0" * 4)))
probe("an ioctl of terminals", lambda: opened("dense", R, lambda fd: fcntl.ioctl(fd, 0x5401, b"\0" * 64)))
probe("FS_IOC_GETFLAGS", lambda: opened("dense", R, lambda fd: fcntl.ioctl(fd, 0x80086601, b"\0" * 8)) and "flags")
probe("FS_IOC_FIEMAP", lambda: opened("dense", R, lambda fd: fcntl.ioctl(fd, 0xc020660b, b"\0" * 32)) and "extents")
probe("preadv2 RWF_NOWAIT", lambda: opened("dense", R, lambda fd: os.preadv(fd, [bytearray(10)], 0, os.RWF_NOWAIT)))


def handle(use):
    buffer, where = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128), ctypes.c_int()
    checked(libc.name_to_handle_at(-100, b"dense", buffer, ctypes.byref(where), 0))
    return use(buffer)


def reopened(buffer):
    here = os.open(".", R)
    fd = checked(libc.open_by_handle_at(here, buffer, R))
    return os.pread(fd, 10, 0)


probe("name_to_handle_at", handle, lambda buffer: "given")
probe("open_by_handle_at", handle, reopened)

STATX = 332 if os.uname().machine == "x86_64" else 291
BASIC, BTIME = 0x7ff, 0x800


def statx(path, flags, mask):
    buffer = ctypes.create_string_buffer(256)
    syscall(STATX, -100, os.fsencode(path), flags, mask, buffer)
    given, blksize, attributes, nlink, uid, gid, mode, _, _, size = struct.unpack_from("=IIQIIIHHQQ", buffer.raw)
    return (given & BTIME) if mask == BTIME else (hex(given & BASIC), blksize, nlink, uid, gid, oct(mode), size)


for path in ("dense", "to-dense", "sparse"):
    for flags in (0, 0x100, 0x2000, 0x4000):
        probe("statx", statx, path, flags, BASIC | BTIME)
probe("statx of the time of birth", statx, "dense", 0, BTIME)
