"""tapdisk as others see it: NBD over its sockets, and a double of it with the tap-ctl that belongs to it.

The double is for hosts without blktap. It opens a device (`aio`) or a VHD with its parents (`vhd`), serves it by NBD, logs the blocks
that are written, takes sockets that are passed to it, and sends what is written to a second place, as tapdisk of blktap 4 does. As a
program it is tap-ctl: `blktap.py allocate`, `spawn`, …
"""

import contextlib
import errno
import glob
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time

# As a program, it is started without the switch for this.
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vhd  # noqa: E402

SOCKETS = "/run/blktap-control"
CONTROL = SOCKETS + "/double"
REQUEST, REPLY, READ, WRITE, BYE = 0x25609513, 0x67446698, 0, 1, 2
OPTION, NAME = b"IHAVEOPT", 1
OLD, PIECE = 0x00420281861253, 1 << 20


def receive(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("the other end is gone")
        data += piece
    return data


class Client:
    """An NBD client, on a socket that speaks the older or the newer style."""

    def __init__(self, connection):
        self.connection, self.number = connection, 0
        magic, style = receive(connection, 8), receive(connection, 8)
        assert magic == b"NBDMAGIC", magic
        if style == OPTION:
            receive(connection, 2)
            connection.sendall(struct.pack(">I", 1) + OPTION + struct.pack(">II", NAME, 0))
            self.size, _ = struct.unpack(">QH", receive(connection, 10))
        else:
            assert style == struct.pack(">Q", OLD), style
            self.size, _ = struct.unpack(">QI", receive(connection, 12))
        receive(connection, 124)

    def ask(self, kind, offset, data, count):
        self.number += 1
        self.connection.sendall(struct.pack(">IHHQQI", REQUEST, 0, kind, self.number, offset, count) + data)
        magic, error, number = struct.unpack(">IIQ", receive(self.connection, 16))
        assert (magic, number) == (REPLY, self.number)
        if error:
            raise OSError(error, os.strerror(error))
        return receive(self.connection, count) if kind == READ else b""

    def read(self, offset, count):
        pieces = range(offset, offset + count, PIECE)
        return b"".join(self.ask(READ, at, b"", min(PIECE, offset + count - at)) for at in pieces)

    def write(self, offset, data):
        for at in range(0, len(data), PIECE):
            piece = data[at:at + PIECE]
            self.ask(WRITE, offset + at, piece, len(piece))

    def close(self):
        self.connection.sendall(struct.pack(">IHHQQI", REQUEST, 0, BYE, 0, 0, 0))
        self.connection.close()


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def pass_socket(path, name, passed):
    """As xapi hands one end of a connection to tapdisk."""
    with connect(path) as control:
        assert socket.send_fds(control, [name.encode()], [passed.fileno()]) == len(name)


class Device:
    """A block device. The kernel wants the pieces of memory aligned that go past its cache."""

    def __init__(self, path, read_only):
        self.file = os.open(path, os.O_DIRECT | (os.O_RDONLY if read_only else os.O_RDWR))
        self.size = os.lseek(self.file, 0, os.SEEK_END)

    def read(self, offset, count):
        with mmap.mmap(-1, count) as piece:
            assert os.preadv(self.file, [piece], offset) == count
            return piece[:]

    def write(self, offset, data):
        with mmap.mmap(-1, len(data)) as piece:
            piece[:] = data
            assert os.pwritev(self.file, [piece], offset) == len(data)

    def close(self):
        os.close(self.file)


DRIVERS = {"aio": Device, "vhd": vhd.Image}


class Log:
    """The bits of the blocks that are written, after a header of 48 bytes; CBT, "Log format"."""

    def __init__(self, path):
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)

    def mark(self, offset, count):
        for block in range(offset >> 16, ((offset + count - 1) >> 16) + 1):
            self.map[48 + block // 8] |= 1 << block % 8

    def close(self):
        self.map.close()


class Tapdisk:
    """The double: one process, one disk."""

    def __init__(self):
        self.pid, self.minor, self.args, self.read_only = os.getpid(), None, "", False
        self.image, self.log, self.opened = None, None, 0
        self.lock, self.paused, self.passed = threading.Condition(), False, {}
        self.mirror, self.mirror_failed, self.mirror_name, self.sockets = None, 0, "", []

    def listen(self, name, serve):
        path = os.path.join(SOCKETS, name)
        server = socket.socket(socket.AF_UNIX)
        # Of one that had this number before and was killed.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        server.bind(path)
        self.sockets.append(path)
        server.listen(16)

        def accept():
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()
        threading.Thread(target=accept, daemon=True).start()

    def take(self, connection):
        """A socket for a mirror that is to begin: which it is for, its name says."""
        name, (fd, *_), _, _ = socket.recv_fds(connection, 256, 4)
        with self.lock:
            self.passed[name.decode()] = socket.socket(fileno=fd)
            self.lock.notify_all()
        connection.close()

    def take_to_serve(self, connection):
        _, (fd, *_), _, _ = socket.recv_fds(connection, 256, 4)
        connection.close()
        connection = socket.socket(fileno=fd)
        connection.sendall(b"NBDMAGIC" + struct.pack(">QQI", OLD, self.opened, 1) + bytes(124))
        self.serve(connection)

    def greet(self, connection):
        connection.sendall(b"NBDMAGIC" + OPTION + struct.pack(">H", 3))
        receive(connection, 4)
        _, kind, count = struct.unpack(">8sII", receive(connection, 16))
        assert kind == NAME
        receive(connection, count)
        connection.sendall(struct.pack(">QH", self.opened, 1) + bytes(124))
        self.serve(connection)

    def serve(self, connection):
        try:
            while True:
                _, _, kind, number, offset, count = struct.unpack(">IHHQQI", receive(connection, 28))
                if kind == BYE:
                    break
                data = receive(connection, count) if kind == WRITE else b""
                connection.sendall(struct.pack(">IIQ", REPLY, 0, number) + self.transfer(kind, offset, count, data))
        except ConnectionError:
            pass
        connection.close()

    def transfer(self, kind, offset, count, data):
        with self.lock:
            self.lock.wait_for(lambda: not self.paused)
            if kind == READ:
                return self.image.read(offset, count)
            if self.log:
                self.log.mark(offset, count)
            self.image.write(offset, data)
            if self.mirror:
                try:
                    self.mirror.write(offset, data)
                except (OSError, AssertionError):
                    self.mirror, self.mirror_failed = None, 1
            return b""

    def control(self, connection):
        command, options = json.loads(receive(connection, struct.unpack(">I", receive(connection, 4))[0]))
        with self.lock:
            answer = self.obey(command, options)
        connection.sendall(json.dumps(answer).encode())
        connection.close()
        if command == "detach":
            for path in self.sockets:
                os.unlink(path)
            os._exit(0)

    def open(self, args, log):
        driver, path = args.split(":", 1)
        if driver not in DRIVERS or len(args) > 255:
            raise OSError(errno.EINVAL, "no driver")
        image = DRIVERS[driver](path, self.read_only)
        if self.paused and image.size != self.opened:
            image.close()
            raise OSError(errno.EMEDIUMTYPE, "another size")
        try:
            self.log = Log(log) if log else None
        except OSError:
            image.close()
            raise
        self.args, self.image, self.opened = args, image, image.size

    def close(self):
        for it in (self.image, self.log):
            if it:
                it.close()
        self.image, self.log = None, None

    def obey(self, command, options):
        """What tap-ctl prints, or the number of an error."""
        if command == "attach":
            self.minor = options["-m"]
            self.listen(f"nbd{self.pid}.{self.minor}", self.greet)
            self.listen(f"nbdserver{self.pid}.{self.minor}", self.take_to_serve)
        elif command == "open":
            self.read_only = "-R" in options
            try:
                self.open(options["-a"], options.get("-C"))
            except OSError as error:
                return error.errno
        elif command == "close":
            self.close()
            self.args, self.paused = "", False
        elif command == "pause":
            self.close()
            self.paused = True
        elif command == "unpause":
            if not self.paused:
                return 22
            try:
                self.open(self.args, options.get("-c"))
            except OSError as error:
                return error.errno
            second = options.get("-2")
            if "-F" in options:
                # As after a first try to open the image that failed.
                self.mirror = None
            elif second:
                name = second.removeprefix("nbd:")
                if name not in ("null", "lost") and not self.lock.wait_for(lambda: name in self.passed, 60):
                    self.close()
                    return 2
                self.mirror, self.mirror_failed, self.mirror_name = None, int(name == "lost"), name
                if name in self.passed:
                    self.mirror = Client(self.passed.pop(name))
                if self.mirror and self.mirror.size != self.opened:
                    self.mirror = None
                    self.close()
                    return 22
            self.paused = False
            self.lock.notify_all()
        elif command == "stats":
            images = [{"name": self.args.split(":", 1)[1]}] if self.image else []
            if self.mirror:
                images.append({"name": self.mirror_name})
            return json.dumps({"images": images, "nbd_mirror_failed": self.mirror_failed, "reqs_outstanding": 0})
        elif command == "list":
            minor = "" if self.minor is None else f" minor={self.minor}"
            return f"pid={self.pid}{minor} state={0x2a if self.paused else 0:#x} args={self.args}\n"
        return ""


def tell(pid, command, options):
    with connect(f"{CONTROL}/ctl{pid}") as connection:
        if command == "list":
            # One that does not answer is left out, as tap-ctl does it.
            connection.settimeout(5)
        message = json.dumps([command, options]).encode()
        connection.sendall(struct.pack(">I", len(message)) + message)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return json.loads(answer)


def tap_ctl(command, words):
    """The exit status."""
    options, words = {}, list(words)
    while words:
        option = words.pop(0)
        options[option] = "" if option in ("-R", "-F") else words.pop(0)
    if command == "allocate":
        os.makedirs(CONTROL, exist_ok=True)
        for number in range(1 << 16):
            try:
                os.close(os.open(f"{CONTROL}/tapdisk-{number}", os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                pass
        print(f"{CONTROL}/tapdisk-{number}")
    elif command == "free":
        os.unlink(f"{CONTROL}/tapdisk-{options['-m']}")
    elif command == "spawn":
        process = subprocess.Popen([sys.executable, "-I", "-S", __file__, "serve"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        print(process.stdout.readline().decode().strip(), flush=True)
        # It lives on.
        os._exit(0)
    elif command == "list":
        for path in glob.glob(f"{CONTROL}/ctl{options.get('-p', '*')}"):
            try:
                print(tell(path.rsplit("ctl", 1)[1], command, options), end="")
            except OSError:
                continue
    else:
        answer = tell(options["-p"], command, options)
        if isinstance(answer, int):
            print(os.strerror(answer), file=sys.stderr)
            return answer
        print(answer, end="")
    return 0


def serve():
    tapdisk = Tapdisk()
    tapdisk.listen(f"double/ctl{tapdisk.pid}", tapdisk.control)
    tapdisk.listen(f"nbdclient{tapdisk.pid}", tapdisk.take)
    print(tapdisk.pid, flush=True)
    # Longer than any test, should nobody end it.
    time.sleep(1800)


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1] == "serve" else tap_ctl(sys.argv[1], sys.argv[2:]))
