#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The `attend` command as a script sees it: flags, files, exit codes, JSON. house_cli.py COMMAND SOURCE_DIR"""
import json
import math
import os
import pty
import random
import re
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest

COMMAND, SOURCE = sys.argv[1], sys.argv[2]
TYPES = {"<f4": "f", "<f8": "d", "|b1": "?", "<i4": "i", "<i8": "q"}


def attend(*arguments, status=0, **options):
    """Run it, check the exit status, return (stdout, stderr)."""
    done = subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600, **options)
    assert done.returncode == status, f"attend {' '.join(arguments)}: exit {done.returncode}, expected {status}\n{done.stdout}{done.stderr}"
    assert "Sanitizer" not in done.stderr, done.stderr
    return done.stdout, done.stderr


def save(path, descr, shape, values):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({''.join(f'{n},' for n in shape)}), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    with open(path, "wb") as f:
        f.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode())
        f.write(struct.pack(f"<{len(values)}{TYPES[descr]}", *values))
    return path


def load(path):
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10:10 + length].decode()
    descr = re.search(r"'descr': '([^']+)'", header).group(1)
    shape = [int(n) for n in re.search(r"\(([^)]*)\)", header).group(1).split(",") if n.strip()]
    values = struct.unpack(f"<{math.prod(shape)}{TYPES[descr]}", data[10 + length:])
    return shape, values


def load_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack("<Q", data[:8])[0]
    return {name: (t["dtype"], t["shape"], data[8 + length + t["data_offsets"][0]:8 + length + t["data_offsets"][1]])
            for name, t in json.loads(data[8:8 + length]).items() if name != "__metadata__"}


def expected(q, k, v, shape, *, allowed=lambda b, h, i, j: True, extra=lambda b, h, i, j: 0.0, scale=None, softcap=0.0, sink=None):
    """(out, lse, probs) by the formulas, in Python's doubles; shape = B, H, Nq, Nk, D."""
    batch, heads, nq, nk, dim = shape
    scale = 1 / math.sqrt(dim) if scale is None else scale
    out, lses, probs = [], [], []
    for b in range(batch):
        for h in range(heads):
            at = b * heads + h
            for i in range(nq):
                row = q[(at * nq + i) * dim:(at * nq + i + 1) * dim]
                s = [scale * sum(x * y for x, y in zip(row, k[(at * nk + j) * dim:(at * nk + j + 1) * dim])) for j in range(nk)]
                s = [softcap * math.tanh(x / softcap) if softcap else x for x in s]
                s = [x + extra(b, h, i, j) if allowed(b, h, i, j) else -math.inf for j, x in enumerate(s)]
                total = sum(math.exp(x) for x in s) + (math.exp(sink[h]) if sink else 0)
                p = [math.exp(x) / total if total else 0 for x in s]
                lses.append(math.log(total) if total else -math.inf)
                probs += p
                out += [sum(p[j] * v[(at * nk + j) * dim + d] for j in range(nk)) for d in range(dim)]
    return out, lses, probs


class Command(unittest.TestCase):
    shape = (2, 3, 5, 7, 4)

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="attend-cli-")
        random.seed(1)
        batch, heads, nq, nk, dim = self.shape
        self.q, self.k, self.v = ([random.uniform(-2, 2) for _ in range(batch * heads * n * dim)] for n in (nq, nk, nk))
        self.inputs = []
        for name, values, n in (("q", self.q, nq), ("k", self.k, nk), ("v", self.v, nk)):
            self.inputs += ["--" + name, save(self.path(name + ".npy"), "<f8", (batch, heads, n, dim), values)]

    def tearDown(self):
        left = [name for name in os.listdir(self.folder.name) if name.endswith(".part")]
        self.folder.cleanup()
        self.assertEqual(left, [])

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def compare(self, flags, **formula):
        attend("run", *self.inputs, *flags, "--out", self.path("o.npy"), "--lse", self.path("lse.npy"), "--check")
        out, lse, _ = expected(self.q, self.k, self.v, self.shape, **formula)
        shape, values = load(self.path("o.npy"))
        self.assertEqual(shape, [*self.shape[:3], self.shape[4]])
        for x, y in zip(values, out):
            self.assertAlmostEqual(x, y, delta=1e-12)
        for x, y in zip(load(self.path("lse.npy"))[1], lse):
            self.assertTrue(x == y or abs(x - y) < 1e-12, f"lse {x}, expected {y}")

    def test_plain(self):
        self.compare([])

    def test_causal(self):
        self.compare(["--causal"], allowed=lambda b, h, i, j: j <= i + 2)

    def test_top_left(self):
        self.compare(["--causal", "--top-left"], allowed=lambda b, h, i, j: j <= i)

    def test_window(self):
        self.compare(["--window", "1,0"], allowed=lambda b, h, i, j: i + 1 <= j <= i + 2)
        self.compare(["--window", "-1,1"], allowed=lambda b, h, i, j: j <= i + 3)

    def test_scale_and_softcap(self):
        self.compare(["--scale", "0.25", "--softcap", "1.5"], scale=0.25, softcap=1.5)

    def test_mask(self):
        mask = [random.random() < 0.6 for _ in range(2 * 7)]
        save(self.path("mask.npy"), "|b1", (2, 7), mask)
        self.compare(["--mask", self.path("mask.npy")], allowed=lambda b, h, i, j: mask[b * 7 + j])

    def test_bias_alibi_sink_kv_len(self):
        bias = [random.uniform(-1, 1) for _ in range(3 * 7)]
        save(self.path("bias.npy"), "<f8", (1, 3, 1, 7), bias)
        self.compare(["--bias", self.path("bias.npy")], extra=lambda b, h, i, j: bias[h * 7 + j])
        save(self.path("alibi.npy"), "<f4", (3,), [0.5, 0.25, 0.125])
        self.compare(["--alibi", self.path("alibi.npy")], extra=lambda b, h, i, j: -abs(i + 2 - j) * 0.5**(h + 1))
        sink = [0.5, -1.0, 2.0]
        save(self.path("sink.npy"), "<f8", (3,), sink)
        self.compare(["--sink", self.path("sink.npy")], sink=sink)
        save(self.path("kv_len.npy"), "<i4", (2,), [3, 6])
        self.compare(["--kv-len", self.path("kv_len.npy")], allowed=lambda b, h, i, j: j < (3, 6)[b])

    def test_layout(self):
        batch, heads, nq, nk, dim = self.shape
        flags = []
        for name, values, n in (("q", self.q, nq), ("k", self.k, nk), ("v", self.v, nk)):
            turned = [values[((b * heads + h) * n + i) * dim + d] for b in range(batch) for i in range(n) for h in range(heads) for d in range(dim)]
            flags += ["--" + name, save(self.path(name + "2.npy"), "<f8", (batch, n, heads, dim), turned)]
        attend("run", *flags, "--layout", "bnhd", "--out", self.path("o2.npy"))
        attend("run", *self.inputs, "--out", self.path("o.npy"))
        (shape, turned), (_, plain) = load(self.path("o2.npy")), load(self.path("o.npy"))
        self.assertEqual(shape, [batch, nq, heads, dim])
        for b in range(batch):
            for h in range(heads):
                for i in range(nq):
                    for d in range(dim):
                        self.assertAlmostEqual(turned[((b * nq + i) * heads + h) * dim + d],
                                               plain[((b * heads + h) * nq + i) * dim + d], delta=1e-14)

    def test_probs_of_the_math_backend(self):
        attend("run", *self.inputs, "--probs", self.path("p.npy"), "--backend", "math")
        shape, values = load(self.path("p.npy"))
        self.assertEqual(shape, [2, 3, 5, 7])
        for x, y in zip(values, expected(self.q, self.k, self.v, self.shape)[2]):
            self.assertAlmostEqual(x, y, delta=1e-12)

    def test_dropout_is_reproduced_by_seed_and_offset(self):
        def out(*flags):
            attend("run", *self.inputs, *flags, "--out", self.path("o.npy"))
            return load(self.path("o.npy"))[1]
        first = out("--dropout", "0.5", "--seed", "3", "--offset", "4")
        self.assertEqual(first, out("--dropout", "0.5", "--seed", "3", "--offset", "4"))
        self.assertNotEqual(first, out("--dropout", "0.5", "--seed", "4", "--offset", "4"))
        self.assertNotEqual(first, out("--dropout", "0.5", "--seed", "3", "--offset", "5"))
        self.assertNotEqual(first, out())

    def test_gradients_by_differences(self):
        d_out = [random.uniform(-1, 1) for _ in range(len(self.q))]
        save(self.path("d.npy"), "<f8", (2, 3, 5, 4), d_out)
        attend("run", *self.inputs, "--causal", "--backward", "--d-out", self.path("d.npy"), "--gradients", self.path("g.safetensors"))
        got = load_safetensors(self.path("g.safetensors"))
        self.assertEqual(sorted(got), ["d_k", "d_q", "d_v"])
        for values, name in ((self.q, "d_q"), (self.k, "d_k"), (self.v, "d_v")):
            dtype, shape, data = got[name]
            gradient = struct.unpack(f"<{len(values)}d", data)
            for at in random.sample(range(len(values)), 5):
                sums, kept = [], values[at]
                for step in (1e-6, -1e-6):
                    values[at] = kept + step
                    out = expected(self.q, self.k, self.v, self.shape, allowed=lambda b, h, i, j: j <= i + 2)[0]
                    sums.append(sum(x * y for x, y in zip(out, d_out)))
                values[at] = kept
                self.assertAlmostEqual(gradient[at], (sums[0] - sums[1]) / 2e-6, delta=1e-7)

    def test_safetensors_in_and_out(self):
        attend("run", *self.inputs, "--out", self.path("all.safetensors"), "--backward")
        got = load_safetensors(self.path("all.safetensors"))
        self.assertEqual(sorted(got), ["d_k", "d_q", "d_v", "lse", "out"])
        self.assertEqual(got["out"][:2], ("F64", [2, 3, 5, 4]))
        data = os.path.join(SOURCE, "data", "minilm.safetensors")
        text, _ = attend("run", "--tensors", data, "--prefix", "layer3.", "--dtype", "f32", "--check", "--json")
        answer = json.loads(text)
        self.assertLess(answer["max_error"], 1e-5)
        attend("view", "--tensors", data, "--prefix", "layer3.", "--dtype", "f32", "--heads", "0,11", "--batch", "6", "--out", self.path("m.png"))
        with open(self.path("m.png"), "rb") as f:
            self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")

    def test_json_of_run(self):
        text, _ = attend("run", "--shape", "1,2,16,8", "--json", "--threads", "1")
        answer = json.loads(text)
        self.assertTrue({"kernel", "seconds", "gflops", "max_error", "workspace_bytes"} <= set(answer))
        self.assertIsNone(answer["max_error"])
        for dtype in ("f32", "f16", "bf16", "f64"):
            text, _ = attend("run", "--shape", "1,4/2,9/17,8/12", "--json", "--check", "--dtype", dtype, "--backward")
            self.assertIn(f"_{dtype}_", json.loads(text)["kernel"])

    def test_explain(self):
        text, _ = attend("explain", "--shape", "1,4,4096,64", "--backend", "efficient")
        self.assertIn("tiled_scalar", text)
        answer = json.loads(attend("explain", "--shape", "1,4,4096,64", "--json")[0])
        self.assertIn("kernel", answer)

    def test_info(self):
        answer = json.loads(attend("info", "--json")[0])
        self.assertTrue({"cpu", "isa", "backends", "cuda", "threads"} <= set(answer))
        self.assertTrue({"devices", "images"} <= set(answer["cuda"]))
        self.assertIn("scalar", attend("info", env={**os.environ, "ATTEND_CPU": "scalar"})[0])

    def test_bench(self):
        text, _ = attend("bench", "--shape", "1,1,64,16", "--seconds", "0.01", "--json", "--cached", "--threads", "1")
        rows = json.loads(text)
        keys = ["shape", "dtype", "direction", "causal", "backend", "kernel", "threads", "seconds", "gflops", "gbytes_per_s",
                "ceiling_gflops", "ceiling_gbytes_per_s", "fraction"]
        self.assertEqual([sorted(row) for row in rows], [sorted(keys)])
        self.assertEqual(rows[0]["direction"], "forward")

    def test_bad_usage_and_input_exit_with_2(self):
        for arguments, words in [
            (["run"], "q"), (["nonsense"], "nonsense"), ([], "usage"), (["run", "--nonsense"], "--nonsense"), (["run", "--shape"], "--shape"),
            (["run", "--shape", "1,2,3"], "--shape"), (["run", "--shape", "1,2,3,4", "x"], '"x"'), (["run", "--shape", "1,3/2,4,4"], "head"),
            (["run", "--shape", "1,2,4,4", "--window", "-2,0"], "window"), (["run", "--shape", "1,2,4,4", "--window", "3"], "--window"),
            (["run", "--shape", "1,2,4,4", "--dropout", "1"], "dropout"), (["run", "--shape", "1,2,4,4", "--scale", "nan"], "scale"),
            (["run", "--shape", "1,2,4,4", "--softcap", "x"], "--softcap"), (["run", "--shape", "1,2,4,4", "--dtype", "f8"], "--dtype"),
            (["run", "--shape", "1,2,4,4", "--backend", "quantum"], "--backend"), (["run", "--shape", "1,2,4,4", "--device", "tpu"], "--device"),
            (["run", "--shape", "1,2,4,4", "--kernel", "none"], "none"), (["run", "--shape", "1,2,4,4", "--layout", "hbnd"], "--layout"),
            (["run", "--shape", "1,2,4,4", "--threads", "-1"], "--threads"), (["run", "--shape", "1,2,4,4", "--gradients", "g"], "--backward"),
            (["run", "--q", "/no/such.npy", "--k", "/no/such.npy", "--v", "/no/such.npy"], "/no/such.npy"),
            (["run", "--tensors", "/no/such.safetensors"], "/no/such.safetensors"),
            (["run", "--tensors", os.path.join(SOURCE, "data", "minilm.safetensors"), "--prefix", "layer9."], "layer9.q"),
            (["run", "--tensors", os.path.join(SOURCE, "README.md")], "README.md"),
            (["run", *self.inputs, "--mask", self.inputs[1]], "mask"),
            (["run", *self.inputs, "--out", "/no/such/directory/o.npy"], "/no/such/directory/o.npy"),
            (["run", "--shape"], "expected a value"), (["run", "-x"], "-x"), (["check", "--causal"], "means nothing here"), (["info", "--shape", "1,1,1,1"], "--shape"),
            (["run", *self.inputs, "--shape", "1,1,1,1"], "--shape"), (["run", *self.inputs, "--out", "x.npy", "--lse", "x.npy"], "x.npy"),
            (["run", *self.inputs, "--lse", "x.npy", "--probs", "x.npy"], "--lse"), (["run", *self.inputs, "--out", "o.txt"], "o.txt"),
            (["run", *self.inputs, "--lse", "l.safetensors"], ".npy"), (["view", *self.inputs, "--out", "m.jpg"], "m.jpg"),
            (["run", "--shape", "1,2,4,4", "--window", "3"], "expected L,R"), (["run", "--q", "/dev/zero"], "/dev/zero: not an .npy file"),
            (["run", "--tensors", "/dev/zero"], "/dev/zero"), (["run", "--shape", "1,2,4,4", "--seed", "-1"], "--seed"), (["run", "--shape", "1,2,4,4", "--offset", "18446744073709551616"], "--offset"),
            (["view", *self.inputs], "--out"), (["view", *self.inputs, "--out", self.path("v.png"), "--heads", "7"], "--heads"),
            (["view", *self.inputs, "--out", self.path("v.png"), "--batch", "2"], "--batch"),
        ]:
            _, error = attend(*arguments, status=2)
            self.assertIn(words, error, f"attend {' '.join(arguments)}")

    def test_full_disk_is_an_error(self):
        if os.path.exists("/dev/full"):
            with open("/dev/full", "w") as full:
                done = subprocess.run([COMMAND, "info"], stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 2, done.stderr)

    def test_check(self):
        text, _ = attend("check", "--backend", "math", "--threads", "1")
        self.assertIn(" 0 failed", text)

    def test_every_help_and_the_manual_name_the_same_flags(self):
        top = attend("--help")[0]
        with open(os.path.join(SOURCE, "docs", "man", "attend.1")) as f:
            manual = re.sub(r"\\f[A-Z]|\\", "", f.read().replace("\\-", "-"))
        entries = set(re.findall(r"--([a-z-]+)", "\n".join(re.findall(r"^\.TP\n(\.B[A-Z]* .*)", manual, re.M))))
        taken = {}
        for command in ("info", "run", "explain", "check", "bench", "view"):
            self.assertIn(command, top)
            self.assertIn(f".SS attend {command}\n", manual)
            taken[command] = set(re.findall(r"^  --([a-z-]+)", attend(command, "--help")[0], re.M))
        every = set().union(*taken.values())
        self.assertEqual(every, entries)
        for command, flags in taken.items():
            for flag in every - flags:
                _, error = attend(command, "--" + flag, "1", status=2)
                self.assertIn("--" + flag, error)

    def test_explain_takes_no_memory(self):
        for shape in ("64,128,10000000,128", "1,1,100000000000,64"):
            answer = json.loads(attend("explain", "--shape", shape, "--json", "--backward")[0])
            self.assertEqual(answer["status"], "ATTEND_OK")
        self.assertIn("overflow", attend("explain", "--shape", "1,1,1152921504606846976,4", status=2)[1])
        self.assertIn("overflow", attend("run", "--shape", "1,1,1152921504606846976,4", status=2)[1])

    def test_little_memory_is_an_error(self):
        little = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))}
        for command in ("run", "bench", "view"):
            more = ["--out", self.path("m.png")] if command == "view" else []
            _, error = attend(command, "--shape", "1,64,8192,64", *more, status=2, **little)
            self.assertIn("out of memory", error)

    def test_flags_choose_from_the_grid(self):
        _, error = attend("bench", "--dtype", "f64", status=2)
        self.assertIn("--shape", error)

    def test_seeds_have_64_bits(self):
        for seed in ("18446744073709551615", "0xffffffffffffffff"):
            attend("run", "--shape", "1,1,2,2", "--seed", seed, "--offset", seed, "--dropout", "0.1")
        self.assertIn("seed 0\n", attend("check", "--seed", "0", "--kernel", "forward_f32_short_scalar")[0])
        self.assertIn("no kernel", attend("check", "--kernel", "forward_by_hand", status=2)[1])

    def test_nobody_reads(self):
        """A pipe whose reader has gone ends the command, by the signal or, where that is ignored, as an error."""
        for ignored, statuses in ((False, (-signal.SIGPIPE,)), (True, (2,))):
            def before(action=signal.SIG_IGN if ignored else signal.SIG_DFL):
                signal.signal(signal.SIGPIPE, action)
            for command in (["info"], ["bench", "--shape", "1,1,64,16", "--seconds", "0.01", "--json"], ["run", "--shape", "1,1,4,4"]):
                reader, writer = os.pipe()
                os.close(reader)
                done = subprocess.run([COMMAND, *command], stdout=writer, stderr=subprocess.PIPE, preexec_fn=before, restore_signals=False, timeout=60)
                os.close(writer)
                self.assertIn(done.returncode, statuses, done.stderr)

    def test_closed_streams_do_not_reach_files(self):
        attend("run", *self.inputs, "--out", self.path("o.npy"))
        for close, status in ((1, 2), (2, 0)):
            done = subprocess.run(["sh", "-c", f'exec "$@" {close}>&-', "sh", COMMAND, "run", *self.inputs, "--out", self.path("closed.npy")],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertEqual(load(self.path("closed.npy")), load(self.path("o.npy")))

    def test_what_is_no_file_is_not_replaced(self):
        os.mkfifo(self.path("pipe"))
        run = subprocess.Popen([COMMAND, "run", *self.inputs, "--out", self.path("pipe")], stdout=subprocess.DEVNULL)
        with open(self.path("pipe"), "rb") as f:
            self.assertEqual(f.read(6), b"\x93NUMPY")
            f.read()
        self.assertEqual(run.wait(30), 0)
        self.assertTrue(stat.S_ISFIFO(os.stat(self.path("pipe")).st_mode))
        os.symlink(save(self.path("target.npy"), "<f4", (1,), [1.0]), self.path("link.npy"))
        attend("run", *self.inputs, "--out", self.path("link.npy"))
        self.assertTrue(os.path.islink(self.path("link.npy")))
        self.assertEqual(load(self.path("target.npy"))[0], [2, 3, 5, 4])
        self.assertIn("directory", attend("run", *self.inputs, "--out", self.folder.name, status=2)[1])
        if os.path.exists("/dev/full"):
            self.assertIn("No space left", attend("run", *self.inputs, "--out", "/dev/full", status=2)[1])

    def test_interrupted_check_and_bench_end(self):
        for command in (["check"], ["bench"]):
            run = subprocess.Popen([COMMAND, *command], stdout=subprocess.DEVNULL)
            time.sleep(0.3)
            run.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(30), -signal.SIGINT)

    def test_interrupted_run_leaves_the_old_file(self):
        path = save(self.path("o.npy"), "<f4", (1,), [1.0])
        run = subprocess.Popen([COMMAND, "run", "--shape", "1,64,4096,128", "--backend", "reference", "--out", path])
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(30), -signal.SIGINT)
        self.assertEqual(load(path), ([1], (1.0,)))

    def test_progress_on_a_terminal_only(self):
        bench = ["bench", "--shape", "1,4,256,64", "--threads", "1", "--seconds", "3"]
        for arguments, wanted in ([["run", "--shape", "1,64,4096,128", "--backend", "reference"], True],
                                  [[*bench[:-1], "60"], True],
                                  [[*bench, "--no-progress"], False]):
            master, slave = pty.openpty()
            run = subprocess.Popen([COMMAND, *arguments], stderr=slave, stdout=subprocess.DEVNULL)
            os.close(slave)
            seen = b""
            while not (wanted and b"\r" in seen):  # what shows progress is ended there
                ready, _, _ = select.select([master], [], [], 60)
                try:
                    chunk = os.read(master, 4096) if ready else b""
                except OSError:
                    chunk = b""
                if not chunk:
                    break
                seen += chunk
            if wanted:
                run.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(60), -signal.SIGINT if wanted else 0)
            os.close(master)
            self.assertEqual(b"\r" in seen, wanted, seen)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=1)
