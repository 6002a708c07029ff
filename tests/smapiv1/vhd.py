"""A VHD and its parents, read and written by the format's description alone: for the double of tapdisk."""

import errno
import os
import struct

SECTOR = 512
FREE = 0xffffffff
DYNAMIC, DIFFERENCING = 3, 4
RELATIVE = (b"MacX", b"W2ru")


class Image:
    """One image, and the parent to which a path in its header leads."""

    def __init__(self, path, read_only):
        self.path, self.file = path, os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self.read_header()
        except BaseException:
            self.close()
            raise

    def read_header(self):
        self.parent = None
        self.footer = os.pread(self.file, SECTOR, 0)
        if self.footer[:8] != b"conectix":
            raise OSError(errno.EINVAL, "no VHD")
        at, self.size, kind = struct.unpack_from(">Q24xQ4xI", self.footer, 16)
        if kind not in (DYNAMIC, DIFFERENCING):
            raise OSError(errno.EINVAL, "a VHD of another type")
        header = os.pread(self.file, 1024, at)
        self.table_at, self.entries, self.block = struct.unpack_from(">Q4xII", header, 16)
        self.table = list(struct.unpack(f">{self.entries}I", os.pread(self.file, 4 * self.entries, self.table_at)))
        self.bitmap = -(-self.block // SECTOR // 8 // SECTOR) * SECTOR
        if kind == DIFFERENCING:
            self.parent = Image(os.path.normpath(os.path.join(os.path.dirname(self.path), self.parent_name(header))), True)
            if self.parent.footer[68:84] != header[40:56]:
                raise OSError(errno.EINVAL, "the parent is another image")

    def parent_name(self, header):
        """A relative path."""
        for number in range(8):
            code, length, at = struct.unpack_from(">4s4xI4xQ", header, 576 + 24 * number)
            if code in RELATIVE:
                text = os.pread(self.file, length, at).decode("utf-8" if code == b"MacX" else "utf-16-le")
                return text.removeprefix("file://").replace("\\", "/")
        raise OSError(errno.EINVAL, "no name of a parent")

    def close(self):
        if self.file is not None:
            os.close(self.file)
            self.file = None
        if self.parent:
            self.parent.close()

    def sync(self):
        os.fsync(self.file)

    def runs(self, offset, count):
        """The pieces of a stretch that lie in one block each: block, first sector in it, number of sectors."""
        per = self.block // SECTOR
        first, end = offset // SECTOR, (offset + count) // SECTOR
        while first < end:
            sectors = min(end - first, per - first % per)
            yield first // per, first % per, sectors
            first += sectors

    def has(self, block):
        """Which sectors of a block are in this image, as a number: the first sector is the highest bit."""
        return int.from_bytes(os.pread(self.file, self.bitmap, self.table[block] * SECTOR), "big")

    def read(self, offset, count):
        out = []
        for block, first, sectors in self.runs(offset, count):
            if self.table[block] == FREE:
                out.append(self.read_parent(block * self.block + first * SECTOR, sectors * SECTOR))
                continue
            bits = f"{self.has(block):0{self.bitmap * 8}b}"
            while sectors:
                # As many as are all here, or all not.
                other = bits.find("10"[int(bits[first])], first, first + sectors)
                number = sectors if other < 0 else other - first
                if bits[first] == "1":
                    at = self.table[block] * SECTOR + self.bitmap + first * SECTOR
                    out.append(os.pread(self.file, number * SECTOR, at))
                else:
                    out.append(self.read_parent(block * self.block + first * SECTOR, number * SECTOR))
                first, sectors = first + number, sectors - number
        return b"".join(out)

    def read_parent(self, offset, count):
        there = min(count, max(0, self.parent.size - offset)) if self.parent else 0
        return (self.parent.read(offset, there) if there else b"") + bytes(count - there)

    def allocate(self, block):
        """A block at the end, whose data begins on a page; the footer moves behind it."""
        end = os.lseek(self.file, 0, os.SEEK_END) - SECTOR
        at = -(-(end + self.bitmap) // 4096) * 4096 - self.bitmap
        os.pwrite(self.file, bytes(self.bitmap), at)
        os.pwrite(self.file, self.footer, at + self.bitmap + self.block)
        self.table[block] = at // SECTOR
        os.pwrite(self.file, struct.pack(">I", at // SECTOR), self.table_at + 4 * block)

    def write(self, offset, data):
        for block, first, sectors in self.runs(offset, len(data)):
            if self.table[block] == FREE:
                self.allocate(block)
            piece, data = data[:sectors * SECTOR], data[sectors * SECTOR:]
            at = self.table[block] * SECTOR
            os.pwrite(self.file, piece, at + self.bitmap + first * SECTOR)
            mask = ((1 << sectors) - 1) << (self.bitmap * 8 - first - sectors)
            os.pwrite(self.file, (self.has(block) | mask).to_bytes(self.bitmap, "big"), at)
