"""Power cuts in simulation.

A run of dtxd and its workers is recorded (shim.c): every change of the store, every fsync, in order, and marks: what the
mount had acknowledged by then.  Then, for many moments, the store is made as a power cut might have left it:

  strict   only what was synced: file data as of the file's last fsync, names as of their folder's last fsync
  random   of what was not synced a random part: writes kept, dropped or torn at 512 bytes, names up to a random moment
  kill     everything (the processes died, the machine went on)

dtxd is started on it and must keep what it promised: what is READY is whole, what is SUCCESSFUL has its files with the
sums of provenance.json, nothing acknowledged is gone, nothing deleted comes back; what was not acknowledged is dropped
again; the experiment ends with the same bytes; nothing half written is left.

    powercut.py BUILD WORKDIR [all]          prints PASS and FAIL lines
"""
import concurrent.futures
import fcntl
import hashlib
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import time
import urllib.parse

BUILD, T = os.path.abspath(sys.argv[1]), sys.argv[2]
ALL = len(sys.argv) > 3
INPUTS = T + "/inputs"
TOGETHER = 3
JOBS = ["01-p1", "02-p2"]
SPECS = {
    "paramgroups/p1": '{"max_steps":5,"lora_r":2,"batch_size":4,"block_size":64,"save_every":2,"eval_every":3,"seed":1}',
    "paramgroups/p2": '{"max_steps":4,"lora_r":3,"batch_size":3,"block_size":64,"save_every":1,"eval_every":2,"seed":2}',
    "paramgroups/long": '{"epochs":5000,"lora_r":2,"batch_size":4,"block_size":64,"save_every":5,"seed":3}',
    "evaluations/quiz": '{"questions":[{"question":"after a?","reference":"bb."}],"max_new_tokens":4}',
}
EXPERIMENT = '{"models":["tiny"],"datasets":["words"],"paramgroups":[%s],"evaluation":"quiz"}'
EXPS = {"e": EXPERIMENT % '"p1","p2"', "d": EXPERIMENT % '"p1"', "c": EXPERIMENT % '"long"'}
FOLDERS = {"models/base/tiny": "tiny", "datasets/words": "words"}


def read(path, default=None):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return default


def sha(path):
    data = read(path)
    return None if data is None else hashlib.sha256(data).hexdigest()


class Problem(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Problem(what)


class Daemon:
    def __init__(self, store, mnt, env=None):
        self.store, self.mnt, self.log = store, mnt, mnt + ".log"
        os.makedirs(mnt, exist_ok=True)
        with open(mnt + ".out", "ab") as out:
            self.p = subprocess.Popen(
                # the recorder sees what dtxd writes, not what the kernel writes past it
                [BUILD + "/dtxd", "--no-passthrough", "--store", store, "--devices", "cpu", "--foreground", "--log", self.log, mnt],
                stdout=out, stderr=out, env=dict(os.environ, **(env or {})))
        end = time.time() + 30
        while not os.path.exists(mnt + "/README.md"):
            check(self.p.poll() is None and time.time() < end,
                  "dtxd does not come up: " + read(mnt + ".out", b"").decode()[-300:])
            time.sleep(0.02)

    def state(self, name):
        text = read(f"{self.mnt}/{name}")
        return None if text is None else text.decode().split("\n")[0]

    def wait(self, name, states, seconds=40, poll=0.02):
        end = time.time() + seconds
        while (now := self.state(name)) not in states:
            check(time.time() < end, f"{name} is {now} after {seconds} s, not {states}: "
                  + read(f"{self.mnt}/{name}", b"").decode()[-300:])
            time.sleep(poll)
        return now

    def drop(self, name, text):
        part = f"{os.path.dirname(self.mnt + '/' + name)}/.part"
        with open(part, "w") as f:
            f.write(text)
        os.rename(part, self.mnt + "/" + name)

    def stop(self):
        self.p.terminate()
        try:
            self.p.wait(40)
        except subprocess.TimeoutExpired:
            self.p.kill()
            raise Problem("dtxd does not end") from None

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        subprocess.run(["umount", "-l", self.mnt], stderr=subprocess.DEVNULL)


# ---- recording ----

class Marks:
    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, words):
        fl = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW, fl)
        os.write(self.fd, f"M {words}\n".encode())
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0))


def copy_in(d, name):
    subprocess.run(["cp", "-r", f"{INPUTS}/{FOLDERS[name]}", f"{d.mnt}/{os.path.dirname(name)}/"], check=True)
    with open(f"{d.mnt}/{name}/_SUCCESS", "w"):
        pass


def record():
    store = T + "/recorded"
    os.mkdir(store)
    root = os.stat(store).st_ino
    d = Daemon(store, T + "/recording", {
        "LD_PRELOAD": T + "/shim.so", "SHIM_STORE": store, "SHIM_LOG": T + "/oplog",
        "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"})
    m = Marks(T + "/oplog")
    try:
        for name in FOLDERS:
            copy_in(d, name)
        for name in FOLDERS:
            d.wait(name + ".status", ["READY"])
            m.add("ready " + name)
        for name, text in SPECS.items():
            d.drop(name + ".json", text)
            d.wait(name + ".status", ["READY"])
            m.add("ready " + name)
        d.drop("experiments/d.json", EXPS["d"])
        d.wait("experiments/d.status", ["SUCCESS"])
        m.add("ended d")
        d.drop("experiments/e.json", EXPS["e"])
        d.wait("experiments/e.status", ["PENDING", "PROCESSING", "SUCCESS"], poll=0.005)
        m.add("accepted e")
        subprocess.run(["rm", "-r", f"{d.mnt}/experiments/d"], check=True)
        m.add("deleted d")
        for job in JOBS:
            d.wait(f"experiments/e/jobs/{job}/status", ["SUCCESSFUL"], poll=0.005)
            m.add("job " + job)
        d.wait("experiments/e.status", ["SUCCESS"])
        m.add("ended e")
        d.drop("experiments/c.json", EXPS["c"])
        d.wait("experiments/c/jobs/01-long/status", ["FINETUNE"])
        m.add("accepted c")
        time.sleep(0.5)
        with open(f"{d.mnt}/experiments/c/control", "w") as f:
            f.write("cancel\n")
        d.wait("experiments/c.status", ["CANCELLED"])
        m.add("cancelled c")
        subprocess.run(["rm", "-r", f"{d.mnt}/datasets/words"], check=True)
        m.add("removed datasets/words")
        time.sleep(0.3)
        d.stop()
    finally:
        d.kill()
    return root, {j: sha(f"{store}/tree/experiments/e/jobs/{j}/checkpoint/adapter_model.safetensors") for j in JOBS}


# ---- the store at a moment ----

class Node:
    def __init__(self, mode):
        self.mode = mode
        self.data, self.mtime = bytearray(), 0
        self.synced, self.synced_mtime, self.pending = b"", 0, []
        self.names, self.kept = {}, {}  # of a folder: now, and what the disk has


class Store:
    """Plays the records back."""

    def __init__(self, root):
        self.by_ino = {root: Node(stat.S_IFDIR | 0o755)}
        self.root = self.by_ino[root]
        self.changes = []  # of names, not on the disk: [(folder, name, node or None), ...] each, in order

    def name_change(self, *parts):
        for folder, name, node in parts:
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        self.changes.append(parts)

    def sync_folder(self, folder):
        """Renames are whole: what left or entered through one is settled in both folders."""
        folder.kept = dict(folder.names)
        done = {(id(f), n) for parts in self.changes if any(f is folder for f, _, _ in parts) for f, n, _ in parts}
        for parts in self.changes:
            for f, n, _ in parts:
                if (id(f), n) in done and f is not folder:
                    if n in f.names:
                        f.kept[n] = f.names[n]
                    else:
                        f.kept.pop(n, None)
        self.changes = [p for p in self.changes if not all(f is folder or (id(f), n) in done for f, n, _ in p)]

    def apply(self, op, a, data):
        node = self.by_ino.get
        if op == "C":
            new = self.by_ino[int(a[2])] = Node(int(a[3], 8))
            new.mtime = new.synced_mtime = int(a[4])
            self.name_change((node(int(a[0])), a[1], new))
        elif op == "L":
            self.name_change((node(int(a[0])), a[1], node(int(a[2]))))
        elif op == "U":
            self.name_change((node(int(a[0])), a[1], None))
        elif op == "R":
            f, t = node(int(a[0])), node(int(a[2]))
            moved, other = f.names[a[1]], t.names.get(a[3])
            self.name_change((f, a[1], other if int(a[4]) == 2 else None), (t, a[3], moved))
        elif op == "W":
            n, at = node(int(a[0])), int(a[1])
            n.data[len(n.data):] = bytes(max(0, at - len(n.data)))
            n.data[at:at + len(data)] = data
            n.mtime = int(a[3])
            n.pending.append((at, data))
        elif op == "T":
            n, size = node(int(a[0])), int(a[1])
            del n.data[size:]
            n.data[len(n.data):] = bytes(size - len(n.data))
            n.mtime = int(a[2])
            n.pending.append((size, None))
        elif op == "F":
            n = node(int(a[0]))
            if stat.S_ISDIR(n.mode):
                self.sync_folder(n)
            else:
                n.synced, n.synced_mtime, n.pending = bytes(n.data), int(a[1]), []

    def names_kept(self, mode, rng):
        if mode == "kill":
            return lambda n: n.names
        if mode == "strict":
            return lambda n: n.kept
        kept = {}
        for parts in self.changes[:rng.randint(0, len(self.changes))]:
            for f, name, node in parts:
                names = kept.setdefault(id(f), dict(f.kept))
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
        return lambda n: kept.get(id(n), n.kept)

    @staticmethod
    def data_kept(n, mode, rng):
        if mode == "kill" or not n.pending:
            return bytes(n.data), n.mtime
        if mode == "strict":
            return n.synced, n.synced_mtime
        data = bytearray(n.synced)
        for at, block in n.pending:
            luck = rng.random()
            if luck < 0.3:
                continue
            if block is None:
                del data[at:]
                continue
            if luck < 0.6:
                block = block[:rng.randint(0, len(block)) // 512 * 512]
            data[len(data):] = bytes(max(0, at - len(data)))
            data[at:at + len(block)] = block
        return bytes(data), n.mtime

    def write(self, folder, mode, rng):
        names, paths = self.names_kept(mode, rng), {}

        def put(n, path):
            os.mkdir(path)
            for name, child in sorted(names(n).items()):
                name = urllib.parse.unquote(name)
                to = f"{path}/{name}"
                if stat.S_ISDIR(child.mode):
                    if id(child) not in paths:
                        paths[id(child)] = to
                        put(child, to)
                elif id(child) in paths:
                    os.link(paths[id(child)], to)
                elif not name.endswith("-shm"):  # shared memory: SQLite makes it anew
                    paths[id(child)] = to
                    data, mtime = self.data_kept(child, mode, rng)
                    with open(to, "wb") as f:
                        f.write(data)
                    os.utime(to, ns=(mtime, mtime))
                    os.chmod(to, stat.S_IMODE(child.mode))
            os.chmod(path, stat.S_IMODE(n.mode))

        put(self.root, folder)


def records(path):
    with open(path, "rb") as f:
        while line := f.readline():
            op, rest = line.decode()[0], line.decode()[2:].rstrip("\n")
            a = rest.split(" ")
            yield op, rest if op == "M" else a, f.read(int(a[2])) if op == "W" else None


# ---- what must hold ----

def whole(d, name):
    source = f"{INPUTS}/{FOLDERS[name]}"
    for f in os.listdir(source):
        if read(f"{source}/{f}") != read(f"{d.mnt}/{name}/{f}"):
            return False
    return True


# Files of a model that it is complete without: the copy ended before them, and nothing says that they will come.
OPTIONAL = ("tokenizer_config.json", "_SUCCESS")


def usable(d, name):
    source = f"{INPUTS}/{FOLDERS[name]}"
    return name.startswith("models/base/") and all(
        read(f"{d.mnt}/{name}/{f}") in ([read(f"{source}/{f}")] + ([None] if f in OPTIONAL else []))
        for f in os.listdir(source))


def check_job(d, exp, job):
    at, tuned = f"{d.mnt}/experiments/{exp}/jobs/{job}", f"{d.mnt}/models/tuned/{exp}.{job}"
    adapter = sha(at + "/checkpoint/adapter_model.safetensors")
    check(adapter, f"{exp}/{job} is SUCCESSFUL without its adapter")
    provenance = json.loads(read(at + "/provenance.json", b"null"))
    check(provenance and provenance["sha256"].get("adapter_model.safetensors") == adapter,
          f"{exp}/{job} is SUCCESSFUL, provenance.json has another sum")
    check("score" in json.loads(read(at + "/score.json", b"{}")), f"{exp}/{job} is SUCCESSFUL without score.json")
    check(sha(tuned + "/adapter_model.safetensors") == adapter, f"tuned/{exp}.{job} is not the job's adapter")
    check(read(tuned + "/score.json") == read(at + "/score.json"), f"tuned/{exp}.{job} has another score.json")
    check(d.state(f"models/tuned/{exp}.{job}.status") == "READY", f"tuned/{exp}.{job} is not READY")
    rows = read(at + "/metrics.csv", b"").decode().strip().split("\n")
    steps = json.loads(SPECS["paramgroups/" + job[3:]])["max_steps"]
    check([r.split(",")[0] for r in rows[1:]] == [str(i + 1) for i in range(steps)], f"{exp}/{job}: metrics.csv: {rows}")


def check_promises(d, acked):
    for name in FOLDERS:
        state = d.state(name + ".status")
        if "ready " + name in acked and "removed " + name not in acked and os.path.exists(d.mnt + "/" + name):
            removing = acked[-1] == "cancelled c" and name == "datasets/words"
            check(state == "READY" or removing, f"{name} was READY, is {state}")
        ok = whole(d, name) or acked[-1:] == ["cancelled c"] or ("ready " + name not in acked and usable(d, name))
        check(state != "READY" or ok, f"{name} is READY and not whole")
    for name, text in SPECS.items():
        state = d.state(name + ".status")
        check("ready " + name not in acked or state == "READY", f"{name} was READY, is {state}")
        check(state != "READY" or json.loads(read(f"{d.mnt}/{name}.json", b"null")) == json.loads(text),
              f"{name} is READY, its file is not what was written")
    for exp in EXPS:
        state = d.state(f"experiments/{exp}.status")
        if f"deleted {exp}" in acked:
            check(state is None, f"{exp} was deleted, is {state}")
        elif f"accepted {exp}" in acked or f"ended {exp}" in acked:
            gone_now = exp == "d" and "accepted e" in acked
            check(state not in (None, "RECEIVING", "REJECTED") or gone_now, f"{exp} was accepted, is {state}")
    if "cancelled c" in acked:
        check(d.state("experiments/c.status") == "CANCELLED", "c was cancelled")
    for exp, jobs in (("e", JOBS), ("d", JOBS[:1])):
        for job in jobs:
            state = d.state(f"experiments/{exp}/jobs/{job}/status")
            check(exp != "e" or "job " + job not in acked or state == "SUCCESSFUL", f"{exp}/{job} was SUCCESSFUL, is {state}")
            if state == "SUCCESSFUL":
                check_job(d, exp, job)


def drop_again(d):
    for name in FOLDERS:
        if d.state(name + ".status") != "READY" or not whole(d, name):
            copy_in(d, name)
    for name, text in SPECS.items():
        if d.state(name + ".status") != "READY":
            d.drop(name + ".json", text)
    for name in list(FOLDERS) + list(SPECS):
        d.wait(name + ".status", ["READY"])
    if d.state("experiments/e.status") in (None, "RECEIVING", "REJECTED"):
        d.drop("experiments/e.json", EXPS["e"])


def leftovers(store):
    for path, _, names in os.walk(store):
        for n in names:
            if ".tmp" in n or n.endswith(".new") or n == ".part":
                yield os.path.relpath(path + "/" + n, store)


def verify(store, acked, adapters):
    d = Daemon(store, store + ".mnt")
    try:
        check_promises(d, acked)
        drop_again(d)
        d.wait("experiments/e.status", ["SUCCESS"], 60)
        for job in JOBS:
            d.wait(f"experiments/e/jobs/{job}/status", ["SUCCESSFUL"], 3)  # the kernel is told of changes 50 ms late
            check_job(d, "e", job)
            got = sha(f"{d.mnt}/experiments/e/jobs/{job}/checkpoint/adapter_model.safetensors")
            check(got == adapters[job], f"e/{job} ends with other bytes")
        if "deleted d" in acked:
            check(d.state("experiments/d.status") is None, "d was deleted and came back")
            check(not os.path.exists(store + "/tree/experiments/d") and not os.path.exists(store + "/work/d"),
                  "d was deleted, its files are there")
        if "cancelled c" in acked:
            check(not os.path.exists(store + "/work/c/01-long/state.json"), "c was cancelled, its state is there")
        d.stop()
        left = [x for x in leftovers(store) if "/c/" not in x and not x.startswith("tree/experiments/.part")
                and not x.endswith("/.part")]
        check(not left, f"left behind: {left[:3]}")
    finally:
        d.kill()


# ---- all of it ----

def moments(ops):
    """(index of the first record that is not done, mode)"""
    marks = [i + 1 for i, o in enumerate(ops) if o[0] == "M"]
    syncs = [i + 1 for i, o in enumerate(ops) if o[0] == "F"]
    rng = random.Random()
    if ALL:
        chosen = [(i, "strict") for i in syncs + marks]
        chosen += [(i, mode) for i in range(1, len(ops)) for mode in ("random", "kill") if rng.random() < 400 / len(ops)]
    else:
        chosen = [(i, "strict") for i in rng.sample(marks, 8) + rng.sample(syncs, 4)]
        chosen += [(rng.randrange(1, len(ops)), mode) for mode in ("random", "kill") for _ in range(4)]
    only = os.environ.get("CUT")  # "1234 strict [seed]"
    if only:
        return [(int(only.split()[0]), only.split()[1])]
    return sorted(set(chosen))


def main():
    root, adapters = record()
    ops = list(records(T + "/oplog"))
    if os.environ.get("OPLOG"):
        for i, (op, a, _) in enumerate(ops):
            print(i, op, a)
    todo, store, at, acked = moments(ops), Store(root), 0, []
    bad = []
    seed = int((os.environ.get("CUT", "") + " 0 0 0").split()[2]) or random.randrange(1 << 30)

    def one(path, index, mode, acked):
        try:
            verify(path, acked, adapters)
        except Exception as e:  # whatever it is, it is a failure of this moment
            bad.append(index)
            print(f"FAIL cut after record {index}, {mode}: {e!r} (last mark: {acked[-1:]}; CUT='{index} {mode} {seed + index}')", flush=True)
            if os.environ.get("KEEP"):
                return
        shutil.rmtree(path, ignore_errors=True)

    with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        waiting = []
        for n, (index, mode) in enumerate(todo):
            while at < index:
                op, a, data = ops[at]
                if op == "M":
                    acked.append(a)
                else:
                    store.apply(op, a, data)
                at += 1
            path = f"{T}/cut{n}"
            store.write(path, mode, random.Random(seed + index if "CUT" not in os.environ else seed))
            waiting.append(pool.submit(one, path, index, mode, list(acked)))
            while sum(not w.done() for w in waiting) > TOGETHER:
                time.sleep(0.05)
    print(f"{len(ops)} records, {len(todo)} cuts, {len(bad)} bad")
    if len(todo) > len(bad):
        print(f"PASS power cuts: {len(todo) - len(bad)} of {len(todo)} moments")
    return 1 if bad else 0


sys.exit(main())
