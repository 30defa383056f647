# alize's own kernels (kernels/), which share the threads of the engine's TBB: the one in OpenVINO's wheel, else the system's.
find_package(TBB QUIET COMPONENTS tbb HINTS ${OpenVINO_DIR})
if(NOT TARGET TBB::tbb)
    message(FATAL_ERROR "alize's kernels need TBB's headers: install them (Debian: libtbb-dev), or set -DALIZE_KERNELS=OFF")
endif()
add_library(alize_kernels OBJECT kernels/attention.cpp kernels/attention_few.cpp kernels/attention_many.cpp kernels/halved.cpp
    kernels/integer_attention.cpp kernels/integer_linear.cpp kernels/linear.cpp kernels/rounded.cpp)
target_link_libraries(alize_kernels PUBLIC openvino::runtime TBB::tbb PRIVATE alize_flags)

# What a file may use that not every processor has, as in runtimes/kernels.py; its functions are called where the processor can.
# The headers of GCC 12's intrinsics begin some results as undefined, which its own warnings take for a mistake (bug 105593).
set(ALIZE_AVX512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mf16c -mfma)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND ALIZE_AVX512 -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
set_source_files_properties(kernels/attention_few.cpp PROPERTIES COMPILE_OPTIONS "${ALIZE_AVX512}")
set_source_files_properties(kernels/rounded.cpp PROPERTIES COMPILE_OPTIONS "${ALIZE_AVX512};-mavx512vnni")
set_source_files_properties(kernels/attention_many.cpp kernels/halved.cpp PROPERTIES COMPILE_OPTIONS "${ALIZE_AVX512};-mavx512bf16;-mamx-tile;-mamx-bf16")
