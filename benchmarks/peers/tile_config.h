// Forced into every file of llama.cpp. GCC's _tile_loadconfig (amxtileintrin.h of version 12) tells the compiler of the
// first 8 of the 64 bytes that it reads: the rest is dropped as never read, and the next AMX instruction ends the
// process.
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*reinterpret_cast<const char(*)[64]>(config)))
#endif
