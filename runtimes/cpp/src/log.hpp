// Warnings: one line each, to stderr or to the host's own function.
#pragma once

#include <string>

#include "alize/alize.h"

namespace alize {

void set_log(alize_log log, void *user);
void warn(const std::string &line);

}  // namespace alize
