# SPDX-License-Identifier: MIT
"""Every attention case of ONNX's own backend test suite, by ONNX's own runner. (Cases named "expanded" hold the operator's
definition by other operators; they prove the runner and the suite, not libattend.)"""
import onnx.backend.test

import attend.onnx

suite = onnx.backend.test.BackendTest(attend.onnx.AttendBackend, __name__)
suite.include("test_attention")
cases = {name: case for name, case in suite.test_cases.items() if any(test.startswith("test_attention") for test in dir(case))}
for case in cases.values():  # the suite also lists what was not included, thousands of tests, as skipped
    for test in [test for test in vars(case) if test.startswith("test_") and not
                 (test.startswith("test_attention") and test.endswith("_cpu"))]:
        delattr(case, test)
globals().update(cases)


def test_the_suite_has_attention_cases():
    names = [name for case in cases.values() for name in dir(case)
             if name.startswith("test_attention") and "expanded" not in name]
    assert len(names) >= 60
