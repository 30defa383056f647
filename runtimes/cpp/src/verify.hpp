// That a folder holds exactly the files that were sealed, byte for byte.
#pragma once

#include <filesystem>

#include "manifest.hpp"
#include "state.hpp"

namespace alize {

// A file whose record in `state` still agrees with the file system is not hashed again, unless `full`. Raises
// ALIZE_TAMPERED naming the file and the command that rebuilds.
void verify(const std::filesystem::path &folder, const Manifest &manifest, DeviceState &state, bool full);

}  // namespace alize
