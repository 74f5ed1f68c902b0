# SPDX-License-Identifier: MIT
# A front for CMake. Every target first lets scripts/setup see whether a tool is missing; when none is, that is silent.
BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
PYTHON ?= python3

.PHONY: all run test bench bench-peers test-gpu bench-gpu install clean help
all: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)

$(BUILD)/build.ninja: CMakeLists.txt
	@scripts/setup build
	@cmake -S . -B $(BUILD) -G Ninja

run: all ## build, and compute attention on the captured tensors of a pretrained transformer
	@scripts/run $(BUILD)

test: ## everything CI runs: both compilers, all tests, sanitizers, install, README, examples, fuzzers
	@scripts/setup test
	@JOBS=$(JOBS) scripts/test

bench: all ## time the kernels of this machine
	@$(BUILD)/attend bench

bench-peers: all ## time them beside other libraries
	@$(MAKE) --no-print-directory -C bench peers BUILD=$(abspath $(BUILD))

test-gpu: ## build for this GPU, test, run under compute-sanitizer, time
	@scripts/gpu-check $(BUILD)-gpu

bench-gpu: all ## time the GPU kernels of this machine beside PyTorch's
	@$(MAKE) --no-print-directory -C bench gpu BUILD=$(abspath $(BUILD))

install: all ## PREFIX=/usr/local DESTDIR=
	@DESTDIR=$(DESTDIR) cmake --install $(BUILD) --prefix $(PREFIX)

clean: ## remove everything that was built
	@rm -rf build build-*/ out

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 : \2/p' Makefile
