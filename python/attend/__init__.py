# SPDX-License-Identifier: MIT
"""attend: exact attention for any array library, over libattend. docs/python.md is the manual."""
from ._call import Explanation, Gradients, attention, attention_backward, explain, info
from ._library import ArgumentError, AttendError, ElementTypeError, NoBackendError, OutOfMemoryError

__all__ = ["attention", "attention_backward", "explain", "info", "Gradients", "Explanation", "AttendError", "ArgumentError",
           "ElementTypeError", "NoBackendError", "OutOfMemoryError"]
__version__ = "0.1.0"
