# SPDX-License-Identifier: MIT
# src/cpu/isa/NAME.c is compiled with the flags of the longest prefix of NAME below, and only for that architecture. They
# come after all other flags, so that a user's -march or -O does not change a kernel. No LTO: it would let these
# instructions leak into code that every CPU runs.
set(isa_table
    "x86_64|avx512bf16|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mbmi2 -mfma -mf16c"
    "x86_64|avx512|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mbmi2 -mfma -mf16c"
    "x86_64|amx|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mbmi2 -mfma -mf16c -mamx-tile -mamx-bf16"
    "x86_64|avx2|-mavx2 -mfma -mf16c"
    "x86_64|x86v3|-mavx2 -mfma -mf16c"
    "aarch64|neon|"
    "any|scalar|")

string(TOLOWER ${CMAKE_SYSTEM_PROCESSOR} processor)
if(processor MATCHES "^(x86_64|amd64)$")
  set(processor x86_64)
elseif(processor MATCHES "^(aarch64|arm64)$")
  set(processor aarch64)
endif()

# Instrumented, the unrolled loops take a compiler minutes at -O3; sanitizers see the same accesses at -O1, and fuzzing explores
# the checks of arguments, not kernels.
set(isa_options -O3)
if(ATTEND_SANITIZE)
  set(isa_options -O1)
endif()
# In RelWithDebInfo, unlike Debug, kernels have functions and lines as debugging symbols: the variables of all that is
# inlined in them are four fifths of their objects and half of the time that they take to compile.
list(APPEND isa_options $<$<CONFIG:RelWithDebInfo>:-g1>)
# What is undefined in a kernel is a trap: a message for each place where it could be is two thirds of an instrumented one.
if(ATTEND_FUZZ)
  list(APPEND isa_options -fno-sanitize=all)
elseif(ATTEND_SANITIZE MATCHES undefined)
  list(APPEND isa_options -fsanitize-undefined-trap-on-error)
endif()

glob(isa_sources src/cpu/isa/*.c)
foreach(source ${isa_sources})
  cmake_path(GET source STEM name)
  set(known FALSE)
  foreach(row ${isa_table})
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 architecture)
    list(GET row 1 isa)
    list(GET row 2 flags)
    if(name MATCHES "^${isa}(_.*)?$")
      set(known TRUE)
      if(architecture STREQUAL "any" OR architecture STREQUAL processor)
        separate_arguments(flags)
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags};${isa_options};-ffp-contract=off;-fno-lto")
        target_sources(attend_objects PRIVATE ${source})
      endif()
      break()
    endif()
  endforeach()
  if(NOT known)
    message(FATAL_ERROR "src/cpu/isa/${name}.c: no row of cmake/isa.cmake fits its name")
  endif()
endforeach()
