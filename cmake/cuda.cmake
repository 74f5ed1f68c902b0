# SPDX-License-Identifier: MIT
# Every src/cuda/NAME.cu becomes one fat binary inside the library: `const unsigned char attend_image_NAME[]` and
# `const size_t attend_image_NAME_size`; cuda_images.h, generated, lists them as IMAGE(NAME). Without nvcc the library
# builds without images, and ATTEND_HAVE_CUDA_IMAGES is not defined. Nothing of CUDA is linked.
#
# Machine code: an image for sm_80 also runs on 8.6 and 8.9. PTX of the last serves everything later. NAME_sm90_TYPE.cu
# uses instructions that exist on sm_90a only.
set(ATTEND_CUDA_ARCHITECTURES "75;80;90" CACHE STRING "Machine code for these compute capabilities, PTX for the last")
set(ATTEND_CUDA_FLAGS "" CACHE STRING "More flags for nvcc; -lineinfo names source lines to profilers and compute-sanitizer")

set(nvcc nvcc-NOTFOUND)
if(NOT ATTEND_CUDA STREQUAL "OFF")
  find_program(ATTEND_NVCC nvcc PATHS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin /opt/cuda/bin)
  set(nvcc ${ATTEND_NVCC})
  if(ATTEND_CUDA STREQUAL "ON" AND NOT nvcc)
    message(FATAL_ERROR "ATTEND_CUDA=ON, but nvcc was not found: set CUDA_HOME, or ATTEND_CUDA=OFF")
  endif()
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS src/cuda/*.cu)
if(cuda_sources AND NOT nvcc)
  message(STATUS "No nvcc: the library is built without GPU images")
elseif(cuda_sources)
  separate_arguments(cuda_flags NATIVE_COMMAND "${ATTEND_CUDA_FLAGS}")
  set(generic "")
  foreach(capability ${ATTEND_CUDA_ARCHITECTURES})
    list(APPEND generic -gencode=arch=compute_${capability},code=sm_${capability})
    set(last ${capability})
  endforeach()
  list(APPEND generic -gencode=arch=compute_${last},code=compute_${last})
  file(GLOB cuda_headers CONFIGURE_DEPENDS src/cuda/*.h src/cuda/*.cuh src/api/*.h include/*.h)
  set(directory ${PROJECT_BINARY_DIR}/images)
  file(MAKE_DIRECTORY ${directory})
  set(list "/* Generated: IMAGE(name) for every GPU image inside the library. */\n")
  foreach(source ${cuda_sources})
    cmake_path(GET source STEM name)
    set(gencode ${generic})
    # Instructions of sm_80. Nor is there an image without them: a later GPU would run its PTX, without the products.
    if(name MATCHES "^(short|decode|tile|split)_")
      list(FILTER gencode EXCLUDE REGEX "compute_7")
      if(NOT gencode)
        continue()
      endif()
    endif()
    if(name MATCHES "_sm90_")
      if(NOT 90 IN_LIST ATTEND_CUDA_ARCHITECTURES)
        continue()
      endif()
      set(gencode -gencode=arch=compute_90a,code=sm_90a)
    endif()
    set(image ${directory}/${name}.fatbin)
    add_custom_command(
      OUTPUT ${image}
      COMMAND ${nvcc} -fatbin ${gencode} -std=c++17 -O3 ${cuda_flags} -I${PROJECT_SOURCE_DIR}/include
              -I${PROJECT_SOURCE_DIR}/src -o ${image} ${source}
      DEPENDS ${source} ${cuda_headers}
      COMMENT "GPU image ${name}"
      VERBATIM)
    file(CONFIGURE OUTPUT ${directory}/${name}.c @ONLY CONTENT
[[/* Generated: the GPU image @name@ as bytes of the library. */
__asm__(".section .rodata\n.hidden attend_image_@name@\n.globl attend_image_@name@\n.balign 64\n"
        "attend_image_@name@:\n.incbin \"@image@\"\nattend_image_@name@_end:\n"
        ".hidden attend_image_@name@_size\n.globl attend_image_@name@_size\n.balign 8\n"
        "attend_image_@name@_size:\n.quad attend_image_@name@_end - attend_image_@name@\n.previous\n");
typedef int attend_image_@name@_is_above;
]])
    set_source_files_properties(${directory}/${name}.c PROPERTIES OBJECT_DEPENDS ${image} COMPILE_OPTIONS -fno-lto)
    target_sources(attend_objects PRIVATE ${directory}/${name}.c)
    string(APPEND list "IMAGE(${name})\n")
  endforeach()
  list(JOIN ATTEND_CUDA_ARCHITECTURES ", " machine_code)
  file(CONFIGURE OUTPUT ${directory}/cuda_targets.h @ONLY CONTENT
[[/* Generated: compute capabilities of the images inside the library. */
#define TARGET_MACHINE_CODE @machine_code@
#define TARGET_PTX @last@
]])
  file(CONFIGURE OUTPUT ${directory}/cuda_images.h CONTENT "${list}" @ONLY)
  target_include_directories(attend_objects PRIVATE ${directory})
  target_compile_definitions(attend_objects PRIVATE ATTEND_HAVE_CUDA_IMAGES=1)
endif()
