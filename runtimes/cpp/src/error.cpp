#include "error.hpp"

#include <system_error>

namespace alize {

std::string system_error(int number) { return std::generic_category().message(number); }

}  // namespace alize
