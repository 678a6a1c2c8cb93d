#!/usr/bin/env python3
"""A small NFSv4.1 client (RFC 8881), for machines whose kernel has none.  It does on the wire what Linux's client does for
the command of the same name: cp opens, writes unstable, commits and closes; cat trusts the size that GETATTR gave; rm of
an open file renames it to .nfsXXXX first; a session that the server lost is made anew and its open files are reclaimed.

  nfs4.py [-p PORT] [-u UID] [-g GID] [-r ROOT] COMMAND ...       errors: NFS4ERR_... on stderr, exit status 1
    ls DIR | stat PATH | cat PATH | readlink PATH | handle PATH | cat-handle HEX
    cp LOCAL PATH [PAUSE-SECONDS]      with a pause in the middle of it         cp -r LOCAL-DIR PATH
    write PATH TEXT | append PATH TEXT | mkdir PATH | rm PATH | rm -r PATH | mv FROM TO | ln FILE NEW | ln -s TARGET NEW
    chmod MODE PATH | chown UID PATH | truncate SIZE PATH | touch PATH | access PATH
    follow PATH SECONDS                tail -n +1 -f, by polling the size       wait PATH WORD... SECONDS  (first line)
    hold PATH                          open, print it; for each line on stdin read anew; at the end close
    hold-rm PATH                       open, remove (as .nfsXXXX), read, close, remove
"""
import os
import select
import socket
import struct
import sys
import time

ERRORS = {
    1: "PERM", 2: "NOENT", 5: "IO", 13: "ACCESS", 17: "EXIST", 18: "XDEV", 20: "NOTDIR", 21: "ISDIR", 22: "INVAL",
    27: "FBIG", 28: "NOSPC", 30: "ROFS", 63: "NAMETOOLONG", 66: "NOTEMPTY", 70: "STALE", 10001: "BADHANDLE",
    10004: "NOTSUPP", 10006: "SERVERFAULT", 10008: "DELAY", 10013: "GRACE", 10022: "STALE_CLIENTID",
    10025: "BAD_STATEID", 10032: "BADNAME", 10040: "BADCHAR", 10046: "FILE_OPEN", 10047: "ADMIN_REVOKED",
    10052: "BADSESSION", 10063: "SEQ_MISORDERED", 10033: "NO_GRACE", 10026: "BAD_SEQID", 10028: "SYMLINK",
}
(ACCESS, CLOSE, COMMIT, CREATE, GETATTR, GETFH, LINK, LOOKUP, OPEN, PUTFH, PUTROOTFH, READ, READDIR, READLINK, REMOVE,
 RENAME, SAVEFH, SETATTR, WRITE, EXCHANGE_ID, CREATE_SESSION, DESTROY_SESSION, SEQUENCE, DESTROY_CLIENTID,
 RECLAIM_COMPLETE) = (3, 4, 5, 6, 9, 10, 11, 15, 18, 22, 24, 25, 26, 27, 28, 29, 32, 34, 38, 42, 43, 44, 53, 57, 58)
DIRECTORY, SYMLINK = 2, 5
BLOCK = 256 << 10
ATTRS = [1, 4, 20, 33, 35, 36, 37, 53]  # type size fileid mode numlinks owner group time_modify
LOST_SESSION = (10052, 10022)


class NfsError(Exception):
    def __init__(self, status, op=None):
        self.status = status
        super().__init__("NFS4ERR_%s (%d)%s" % (ERRORS.get(status, "?"), status, " in op %d" % op if op else ""))


# ---- XDR ----

def u32(*v):
    return struct.pack(">%dI" % len(v), *v)


def u64(v):
    return struct.pack(">Q", v)


def opaque(b):
    if isinstance(b, str):
        b = b.encode()
    return u32(len(b)) + b + b"\0" * (-len(b) % 4)


def bitmap(bits):
    words = [0] * (max(bits) // 32 + 1) if bits else []
    for b in bits:
        words[b // 32] |= 1 << b % 32
    return u32(len(words), *words)


class Unpacker:
    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, n):
        if self.at + n > len(self.data):
            raise EOFError("the reply is too short")
        self.at += n
        return self.data[self.at - n:self.at]

    def u32(self):
        return struct.unpack(">I", self.bytes(4))[0]

    def u64(self):
        return struct.unpack(">Q", self.bytes(8))[0]

    def opaque(self):
        n = self.u32()
        out = self.bytes(n)
        self.bytes(-n % 4)
        return out

    def bitmap(self):
        words = [self.u32() for _ in range(self.u32())]
        return [i * 32 + b for i, w in enumerate(words) for b in range(32) if w >> b & 1]

    def attrs(self):
        bits, a = self.bitmap(), Unpacker(self.opaque())
        read = {1: a.u32, 3: a.u64, 4: a.u64, 11: a.u32, 20: a.u64, 33: a.u32, 35: a.u32, 36: a.opaque, 37: a.opaque,
                53: lambda: (a.u64(), a.u32())}
        return {b: read[b]() for b in bits}


def set_attrs(mode=None, size=None, owner=None, mtime=None):
    bits, body = [], b""
    for bit, value in ((4, size and u64(size) or (u64(0) if size == 0 else None)),
                       (33, None if mode is None else u32(mode)), (36, None if owner is None else opaque(owner)),
                       (54, None if mtime is None else (u32(0) if mtime == "now" else u32(1) + u64(mtime) + u32(0)))):
        if value is not None:
            bits.append(bit)
            body += value
    return bitmap(bits) + opaque(body)


# ---- results of the operations ----

def result(op, r):
    if op in (GETFH, READLINK):
        return r.opaque()
    if op == GETATTR:
        return r.attrs()
    if op == ACCESS:
        return r.u32(), r.u32()
    if op == READ:
        return r.u32(), r.opaque()
    if op == WRITE:
        return r.u32(), r.u32(), r.bytes(8)
    if op == COMMIT:
        return r.bytes(8)
    if op == CLOSE:
        return r.bytes(16)
    if op in (REMOVE, LINK):
        return r.bytes(20)
    if op == RENAME:
        return r.bytes(40)
    if op == CREATE:
        return r.bytes(20), r.bitmap()
    if op == SEQUENCE:
        return r.bytes(36)
    if op == OPEN:
        stateid = r.bytes(16)
        r.bytes(20)
        flags, _ = r.u32(), r.bitmap()
        if r.u32() == 3 and r.u32() in (1, 2):
            r.u32()
        return stateid, flags
    if op == READDIR:
        r.bytes(8)
        entries = []
        while r.u32():
            entries.append((r.u64(), r.opaque().decode("utf-8", "surrogateescape"), r.attrs()))
        return entries, r.u32()
    if op == EXCHANGE_ID:
        return r.u64(), r.u32(), r.u32()
    if op == CREATE_SESSION:
        return r.bytes(16), r.u32()
    return None


class Client:
    def __init__(self, host, port, uid, gid, owner):
        self.host, self.port, self.uid, self.gid, self.owner = host, port, uid, gid, owner
        self.verifier = os.urandom(8)
        self.xid = int.from_bytes(os.urandom(3), "big")
        self.sock = self.session = None
        self.open_files = {}  # stateid -> (fh, access)

    # ---- RPC ----

    def connect(self):
        end = time.time() + 20
        while True:
            try:
                self.sock = socket.create_connection((self.host, self.port), 5)
                self.sock.settimeout(30)
                return
            except OSError:
                if time.time() > end:
                    raise
                time.sleep(0.1)

    def call_once(self, body):
        self.xid += 1
        cred = u32(0) + opaque("client") + u32(self.uid, self.gid, 0)
        msg = u32(self.xid, 0, 2, 100003, 4, 1, 1) + opaque(cred) + u32(0, 0) + body
        self.sock.sendall(u32(0x80000000 | len(msg)) + msg)
        reply = b""
        while True:
            mark = struct.unpack(">I", self.receive(4))[0]
            reply += self.receive(mark & 0x7FFFFFFF)
            if mark >> 31:
                break
        r = Unpacker(reply)
        if r.u32() != self.xid or r.u32() != 1 or r.u32() != 0:
            raise OSError("the server does not take our calls")
        r.u32()
        r.opaque()
        if r.u32() != 0:
            raise OSError("the server cannot read our call")
        return r

    def receive(self, n):
        out = b""
        while len(out) < n:
            got = self.sock.recv(n - len(out))
            if not got:
                raise ConnectionError("the server closed the connection")
            out += got
        return out

    def raw(self, ops):
        """ops: (number, arguments)...; the results of all of them, or NfsError of the one that failed"""
        body = opaque("") + u32(1, len(ops)) + b"".join(u32(op) + args for op, args in ops)
        r = self.call_once(body)
        r.u32()
        r.opaque()
        out = []
        for _ in range(r.u32()):
            op, status = r.u32(), r.u32()
            if status:
                raise NfsError(status, op)
            if op == SETATTR:
                r.bitmap()
            out.append(result(op, r))
        return out

    # ---- sessions ----

    def start(self):
        self.connect()
        clientid, sequence, _ = self.raw([(EXCHANGE_ID, self.verifier + opaque(self.owner) + u32(0, 0, 0))])[0]
        channel = u32(0, 1 << 20, 1 << 20, 4096, 16, 1, 0)
        self.session, _ = self.raw([(CREATE_SESSION, u64(clientid) + u32(sequence, 0) + channel + channel
                                     + u32(0x40000000, 1, 0))])[0]
        self.clientid, self.sequence = clientid, 0
        for old, (fh, access) in list(self.open_files.items()):  # after a restart of the server
            new = self.compound([(PUTFH, opaque(fh)), (OPEN, self.open_args(access) + u32(0) + u32(1, 0))], tries=1)[1][0]
            self.open_files[old] = (fh, access, new)
        try:
            self.compound([(RECLAIM_COMPLETE, u32(0))], tries=1)
        except NfsError as e:
            if e.status != 10054:  # COMPLETE_ALREADY
                raise

    def compound(self, ops, tries=300):
        while True:
            try:
                if not self.session:
                    self.start()
                self.sequence += 1
                head = (SEQUENCE, self.session + u32(self.sequence, 0, 0, 0))
                return self.raw([head] + ops)[1:]
            except NfsError as e:
                if e.status in LOST_SESSION:
                    self.session = None
                elif e.status in (10008, 10013):  # DELAY, GRACE: Linux tries again for ever
                    time.sleep(0.1)
                else:
                    raise
                tries -= 1
                if tries <= 0:
                    raise
            except (ConnectionError, socket.timeout):
                self.session = None
                tries -= 1
                if tries <= 0:
                    raise

    def stop(self):
        if self.session:
            self.raw([(DESTROY_SESSION, self.session)])
            self.raw([(DESTROY_CLIENTID, u64(self.clientid))])

    def stateid(self, s):
        entry = self.open_files.get(s)
        return entry[2] if entry and len(entry) == 3 else s

    def open_args(self, access):
        return u32(0, access | 0x400, 0) + u64(0) + opaque("owner")


# ---- what people do ----

class Mount:
    def __init__(self, client, root):
        self.c, self.root = client, [p for p in root.split("/") if p]

    def walk(self, path):
        return [(PUTROOTFH, b"")] + [(LOOKUP, opaque(p)) for p in self.root + [p for p in path.split("/") if p]]

    def parent(self, path):
        head, name = os.path.split(path.rstrip("/"))
        return self.walk(head), opaque(name)

    def handle(self, path):
        return self.c.compound(self.walk(path) + [(GETFH, b"")])[-1]

    def attrs(self, path):
        return self.c.compound(self.walk(path) + [(GETATTR, bitmap(ATTRS))])[-1]

    def attrs_of(self, fh):
        return self.c.compound([(PUTFH, opaque(fh)), (GETATTR, bitmap(ATTRS))])[-1]

    def listing(self, path):
        fh, cookie, verifier, out = self.handle(path), 0, b"\0" * 8, []
        while True:
            entries, eof = self.c.compound([(PUTFH, opaque(fh)), (READDIR, u64(cookie) + verifier + u32(8192, 65536)
                                                                  + bitmap(ATTRS))])[-1]
            out += [(n, a) for _, n, a in entries]
            if eof or not entries:
                return out
            cookie = entries[-1][0]

    def open(self, path, access, create=None):
        where, name = self.parent(path)
        how = u32(0) if create is None else u32(1, 0) + set_attrs(**create)
        out = self.c.compound(where + [(OPEN, self.c.open_args(access) + how + u32(0) + name), (GETFH, b""),
                                       (GETATTR, bitmap(ATTRS))])
        stateid, fh = out[-3][0], out[-2]
        self.c.open_files[stateid] = (fh, access)
        return stateid, fh, out[-1]

    def close(self, stateid, fh):
        self.c.compound([(PUTFH, opaque(fh)), (CLOSE, u32(0) + self.c.stateid(stateid))])
        self.c.open_files.pop(stateid, None)

    def pread(self, stateid, fh, offset, size):
        return self.c.compound([(PUTFH, opaque(fh)), (READ, self.c.stateid(stateid) + u64(offset) + u32(size))])[-1][1]

    def pwrite(self, stateid, fh, offset, data):
        done = 0
        while done < len(data):
            part = data[done:done + BLOCK]
            done += self.c.compound([(PUTFH, opaque(fh)), (WRITE, self.c.stateid(stateid) + u64(offset + done) + u32(0)
                                                           + opaque(part))])[-1][0]

    def commit(self, fh):
        self.c.compound([(PUTFH, opaque(fh)), (COMMIT, u64(0) + u32(0))])

    def read_open(self, stateid, fh, start=0):
        """As a client with a page cache: as many bytes as GETATTR says."""
        out, size = b"", self.attrs_of(fh)[4]
        while start + len(out) < size:
            got = self.pread(stateid, fh, start + len(out), min(BLOCK, size - start - len(out)))
            if not got:
                raise OSError("the file is shorter than its size: %d of %d" % (start + len(out), size))
            out += got
        return out

    def read(self, path):
        stateid, fh, _ = self.open(path, 1)
        try:
            return self.read_open(stateid, fh)
        finally:
            self.close(stateid, fh)

    def write(self, path, data, pause=0.0, mode=0o644, truncate=True):
        stateid, fh, a = self.open(path, 2, {"mode": mode, "size": 0} if truncate else {})
        try:
            at, half = (0 if truncate else a[4]), len(data) // 2 if pause else len(data)
            self.pwrite(stateid, fh, at, data[:half])
            if pause:
                self.commit(fh)
                self.pause(pause)
                self.pwrite(stateid, fh, at + half, data[half:])
            self.commit(fh)
        finally:
            self.close(stateid, fh)

    def pause(self, seconds):
        """keeps the lease"""
        end = time.time() + seconds
        while time.time() < end:
            time.sleep(min(1, max(0, end - time.time())))
            self.c.compound([])

    def setattr(self, path, **what):
        self.c.compound(self.walk(path) + [(SETATTR, b"\0" * 16 + set_attrs(**what))])

    def make(self, path, kind, attrs):
        where, name = self.parent(path)
        self.c.compound(where + [(CREATE, kind + name + attrs)])

    def mkdir(self, path):
        self.make(path, u32(DIRECTORY), set_attrs(mode=0o755))

    def symlink(self, target, path):
        self.make(path, u32(SYMLINK) + opaque(target), set_attrs())

    def link(self, path, new):
        where, name = self.parent(new)
        self.c.compound(self.walk(path) + [(SAVEFH, b"")] + where + [(LINK, name)])

    def remove(self, path):
        where, name = self.parent(path)
        self.c.compound(where + [(REMOVE, name)])

    def rename(self, path, new):
        where, name = self.parent(path)
        to, newname = self.parent(new)
        self.c.compound(where + [(SAVEFH, b"")] + to + [(RENAME, name + newname)])

    def remove_tree(self, path):
        if self.attrs(path)[1] == DIRECTORY:
            for name, _ in self.listing(path):
                self.remove_tree(path + "/" + name)
        self.remove(path)

    def copy_tree(self, local, path):
        self.mkdir(path)
        for name in sorted(os.listdir(local)):
            inner = os.path.join(local, name)
            if os.path.isdir(inner):
                self.copy_tree(inner, path + "/" + name)
            else:
                with open(inner, "rb") as f:
                    self.write(path + "/" + name, f.read())


def show(name, a):
    print("%s %o %d %d %s:%s %d.%09d %d %s" % ("?-d---l"[a[1]] if a[1] < 7 else "?", a[33], a[35], a[4], a[36].decode(),
                                               a[37].decode(), a[53][0], a[53][1], a[20], name))


def hold(m, path):
    stateid, fh, _ = m.open(path, 1)
    print(m.read_open(stateid, fh).decode(), flush=True)
    while True:
        while not select.select([sys.stdin], [], [], 1)[0]:
            m.c.compound([])
        if not sys.stdin.readline():
            break
        print(m.read_open(stateid, fh).decode(), flush=True)
    m.close(stateid, fh)


def hold_rm(m, path):
    stateid, fh, _ = m.open(path, 1)
    hidden = os.path.dirname(path) + "/.nfs000000000000002a00000001"
    m.rename(path, hidden)
    text = m.read_open(stateid, fh)
    m.close(stateid, fh)
    try:
        m.remove(hidden)
    except NfsError as e:
        if e.status != 2:  # of what DTX made nothing was left to remove
            raise
    sys.stdout.buffer.write(text)


def follow(m, path, seconds):
    stateid, fh, _ = m.open(path, 1)
    end, at = time.time() + float(seconds), 0
    while time.time() < end:
        got = m.read_open(stateid, fh, at)
        at += len(got)
        sys.stdout.buffer.write(got)
        sys.stdout.buffer.flush()
        time.sleep(0.5)
    m.close(stateid, fh)


def wait(m, path, words, seconds):
    end, first = time.time() + float(seconds), ""
    while time.time() < end:
        try:
            first = m.read(path).decode().split("\n")[0]
            if first in words:
                return
        except NfsError as e:
            if e.status != 2:
                raise
            first = "(not there)"
        except OSError as e: # a second or more between GETATTR and READ, on a busy machine: it may have another text then
            first = str(e)
        time.sleep(0.2)
    sys.exit("%s: waited %s s for %s, it says %s" % (path, seconds, " ".join(words), first))


def copy(m, args):
    if args[0] == "-r":
        m.copy_tree(args[1], args[2])
        return
    with open(args[0], "rb") as f:
        m.write(args[1], f.read(), float(args[2]) if len(args) > 2 else 0)


def remove(m, args):
    if args[0] == "-r":
        m.remove_tree(args[1])
    else:
        m.remove(args[0])


def read_handle(m, text):
    fh = bytes.fromhex(text)
    out = m.c.compound([(PUTFH, opaque(fh)), (OPEN, m.c.open_args(1) + u32(0) + u32(4))])
    m.c.open_files[out[1][0]] = (fh, 1)
    sys.stdout.buffer.write(m.read_open(out[1][0], fh))
    m.close(out[1][0], fh)


def run(m, cmd, a):
    commands = {
        "ls": lambda: [show(n, x) for n, x in m.listing(a[0])],
        "stat": lambda: show(a[0], m.attrs(a[0])),
        "cat": lambda: sys.stdout.buffer.write(m.read(a[0])),
        "readlink": lambda: print(m.c.compound(m.walk(a[0]) + [(READLINK, b"")])[-1].decode()),
        "handle": lambda: print(m.handle(a[0]).hex()),
        "stat-handle": lambda: show(a[0], m.attrs_of(bytes.fromhex(a[0]))),
        "cat-handle": lambda: read_handle(m, a[0]),
        "cp": lambda: copy(m, a),
        "write": lambda: m.write(a[0], a[1].encode() + b"\n"),
        "append": lambda: m.write(a[0], a[1].encode() + b"\n", truncate=False),
        "mkdir": lambda: m.mkdir(a[0]),
        "rm": lambda: remove(m, a),
        "mv": lambda: m.rename(a[0], a[1]),
        "ln": lambda: m.symlink(a[1], a[2]) if a[0] == "-s" else m.link(a[0], a[1]),
        "chmod": lambda: m.setattr(a[1], mode=int(a[0], 8)),
        "chown": lambda: m.setattr(a[1], owner=a[0]),
        "truncate": lambda: m.setattr(a[1], size=int(a[0])),
        "touch": lambda: m.setattr(a[0], mtime="now"),
        "access": lambda: print("%x" % m.c.compound(m.walk(a[0]) + [(ACCESS, u32(0x3F))])[-1][1]),
        "follow": lambda: follow(m, a[0], a[1]),
        "wait": lambda: wait(m, a[0], a[1:-1], a[-1]),
        "hold": lambda: hold(m, a[0]),
        "hold-rm": lambda: hold_rm(m, a[0]),
    }
    commands[cmd]()


def main():
    args, opt = sys.argv[1:], {"-p": "2049", "-u": str(os.getuid()), "-g": None, "-r": "/dtx"}
    while len(args) > 1 and args[0] in opt:
        opt[args[0]] = args[1]
        args = args[2:]
    if not args:
        sys.exit(__doc__)
    client = Client("127.0.0.1", int(opt["-p"]), int(opt["-u"]), int(opt["-g"] or opt["-u"]),
                    "nfs4.py.%d.%s" % (os.getpid(), os.urandom(4).hex()))
    try:
        run(Mount(client, opt["-r"]), args[0], args[1:])
        sys.stdout.flush()
        client.stop()
    except (NfsError, OSError) as e:
        sys.exit("nfs4.py: %s: %s" % (" ".join(args)[:200], e))


if __name__ == "__main__":
    main()
