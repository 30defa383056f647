// What OpenVINO looks for in a library of operators.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>

#include "integer_linear.hpp"

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<alize::kernels::IntegerLinear>>()}));
