#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`attend --device cuda` on the emulated driver, and without any. house_cli_gpu.py COMMAND FAKE_DRIVER_DIRECTORY"""
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import unittest

COMMAND, FAKE = sys.argv[1], sys.argv[2]
KEYS = ["shape", "dtype", "direction", "causal", "backend", "kernel", "threads", "seconds", "gflops", "gbytes_per_s",
        "ceiling_gflops", "ceiling_gbytes_per_s", "fraction"]
EMULATED = {**os.environ, "LD_LIBRARY_PATH": FAKE, "ATTEND_CUDA_IMAGES": "emulated"}


def attend(*arguments, status=0, **settings):
    """Run it on the emulated GPU, check the exit status, return (stdout, stderr)."""
    done = subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600,
                          env={**EMULATED, **settings})
    assert done.returncode == status, f"attend {' '.join(arguments)}: exit {done.returncode}, expected {status}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


class Gpu(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="attend-gpu-")

    def tearDown(self):
        self.folder.cleanup()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def test_results_come_back(self):
        for flags in (["--causal"], ["--dtype", "bf16", "--layout", "bnhd", "--softcap", "2", "--window", "2,3"], ["--dropout", "0.25", "--seed", "3"]):
            text, _ = attend("run", "--shape", "1,2/1,9/11,8/4", "--device", "cuda", "--backward", "--check", "--json", *flags)
            answer = json.loads(text)
            self.assertIn("cuda", answer["kernel"])
            self.assertGreater(answer["seconds"], 0)

    def test_gpu_and_cpu_write_the_same(self):
        for device in ("cpu", "cuda:0"):
            attend("run", "--shape", "2,2,6,8", "--dtype", "f64", "--device", device, "--backend", "math", "--probs", self.path("p" + device), "--out", self.path("o" + device))
        for name in "po":
            with open(self.path(name + "cpu"), "rb") as f, open(self.path(name + "cuda:0"), "rb") as g:
                a, b = f.read(), g.read()
            self.assertEqual(len(a), len(b))
            self.assertEqual(a[:128], b[:128])
            for x, y in zip(memoryview(a[128:]).cast("d"), memoryview(b[128:]).cast("d")):
                self.assertAlmostEqual(x, y, delta=1e-14)

    def test_second_gpu(self):
        attend("run", "--shape", "1,1,4,8", "--device", "cuda:1", "--check", FAKE_CUDA_GPUS="2")
        _, error = attend("run", "--shape", "1,1,4,8", "--device", "cuda:1", status=2)
        self.assertIn("cuda:1: expected a GPU below 1", error)

    def test_errors_of_the_driver_write_nothing(self):
        for failure, words in (("cuMemAlloc_v2:2", "out of memory"), ("cuMemcpyHtoD_v2:700", "ILLEGAL_ADDRESS"), ("cuMemcpyDtoH_v2:700", "ILLEGAL_ADDRESS"),
                               ("cuLaunchKernel:700", "ILLEGAL_ADDRESS"), ("cuStreamSynchronize:700", "ILLEGAL_ADDRESS")):
            _, error = attend("run", "--shape", "1,1,4,8", "--device", "cuda", "--out", self.path("o.npy"), status=2, FAKE_CUDA_FAIL=failure)
            self.assertIn(words, error)
            self.assertEqual(os.listdir(self.folder.name), [])

    def test_explain_view_bench(self):
        self.assertIn("cuda", json.loads(attend("explain", "--shape", "1,4,128,64", "--device", "cuda", "--json")[0])["kernel"])
        attend("view", "--shape", "1,2,5,8", "--device", "cuda", "--out", self.path("m.png"))
        self.assertEqual(os.listdir(self.folder.name), ["m.png"])
        rows = json.loads(attend("bench", "--shape", "1,1,4,8", "--device", "cuda", "--seconds", "0.01", "--backward", "--json")[0])
        self.assertEqual([sorted(row) for row in rows], [sorted(KEYS)])
        self.assertIsNone(rows[0]["ceiling_gflops"])  # the emulated driver has no clocks

    def test_without_a_driver(self):
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            for command in ("run", "bench", "check", "view"):
                more = ["--out", self.path("m.png")] if command == "view" else []
                shape = [] if command == "check" else ["--shape", "1,1,4,8"]
                _, error = attend(command, *shape, "--device", "cuda", *more, status=2, LD_LIBRARY_PATH="")
                self.assertIn("no CUDA driver", error)
        else:
            self.skipTest("there is a driver")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=1)
