#include "safetensors.hpp"

#include <algorithm>
#include <bit>

#include "error.hpp"
#include "json.hpp"

namespace alize {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors stores little-endian numbers");

constexpr uint64_t kLongestHeader = 100000000;  // the format's own limit

uint64_t item_size(const std::string &dtype) {
    static const std::map<std::string, uint64_t> sizes = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
        {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8},
    };
    const auto found = sizes.find(dtype);
    if (found == sizes.end()) fail(ALIZE_ARTIFACT, "unknown dtype ", repr(std::string_view(dtype)));
    return found->second;
}

uint64_t natural(const Json &value) {
    if (!value.is_number_unsigned()) fail(ALIZE_ARTIFACT, "a size in its header is no whole number");
    return value.get<uint64_t>();
}

const Json &member(const Json &object, const char *name) {
    const auto found = object.find(name);
    if (found == object.end()) fail(ALIZE_ARTIFACT, "its header lacks ", name);
    return *found;
}

Safetensors::Tensor decode(const std::string &name, const Json &entry) {
    if (!entry.is_object() || entry.size() != 3) fail(ALIZE_ARTIFACT, "its header says nothing usable of ", name);
    const Json &shape = member(entry, "shape"), &offsets = member(entry, "data_offsets"),
               &dtype = member(entry, "dtype");
    if (!shape.is_array() || !offsets.is_array() || offsets.size() != 2 || !dtype.is_string())
        fail(ALIZE_ARTIFACT, "its header says nothing usable of ", name);
    Safetensors::Tensor tensor{dtype.get<std::string>(), {}, natural(offsets[0]), natural(offsets[1])};
    uint64_t bytes = item_size(tensor.dtype);
    for (const Json &dimension : shape) {
        const uint64_t size = natural(dimension);
        if (size > INT64_MAX || __builtin_mul_overflow(bytes, size, &bytes))
            fail(ALIZE_ARTIFACT, "the shape of ", name, " overflows");
        tensor.shape.push_back(static_cast<int64_t>(size));
    }
    if (tensor.begin > tensor.end || tensor.end - tensor.begin != bytes)
        fail(ALIZE_ARTIFACT, "the offsets of ", name, " are not those of its shape");
    return tensor;
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path &path) : file_(path, std::ios::binary) {
    if (!file_) fail(ALIZE_ARTIFACT, "it cannot be opened");
    file_.seekg(0, std::ios::end);
    const auto size = static_cast<uint64_t>(std::max<std::streamoff>(file_.tellg(), 0));
    file_.seekg(0);
    uint64_t length = 0;
    file_.read(reinterpret_cast<char *>(&length), sizeof(length));
    if (!file_ || length > std::min(kLongestHeader, size - sizeof(length)))
        fail(ALIZE_ARTIFACT, "its header is cut off");
    std::string header(length, '\0');
    file_.read(header.data(), static_cast<std::streamsize>(length));
    if (!file_ || not_utf8(header) != std::string_view::npos) fail(ALIZE_ARTIFACT, "its header is not UTF-8");
    const Json json = parse_json(header);
    if (!json.is_object()) fail(ALIZE_ARTIFACT, "its header is no JSON object");
    for (const auto &item : json.items()) {
        if (item.key() != "__metadata__") {
            tensors_[item.key()] = decode(item.key(), item.value());
            continue;
        }
        if (!item.value().is_object()) fail(ALIZE_ARTIFACT, "its metadata is no JSON object");
        for (const auto &entry : item.value().items()) {
            if (!entry.value().is_string()) fail(ALIZE_ARTIFACT, "its metadata holds something else than texts");
            metadata_[entry.key()] = entry.value().get<std::string>();
        }
    }
    start_ = sizeof(length) + length;
    check_offsets(size - start_);
}

// The tensors fill the file without a gap or an overlap, as the format has it.
void Safetensors::check_offsets(uint64_t size) const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (const auto &[name, tensor] : tensors_) ranges.emplace_back(tensor.begin, tensor.end);
    std::sort(ranges.begin(), ranges.end());
    uint64_t at = 0;
    for (const auto &[begin, end] : ranges) {
        if (begin != at) fail(ALIZE_ARTIFACT, "its tensors overlap or leave a gap");
        at = end;
    }
    if (at != size) fail(ALIZE_ARTIFACT, "it has ", size, " bytes of tensors, not the ", at, " that its header says");
}

const Safetensors::Tensor &Safetensors::tensor(const std::string &name, const char *dtype, size_t rank) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail(ALIZE_ARTIFACT, "it has no tensor ", name);
    if (found->second.dtype != dtype || found->second.shape.size() != rank)
        fail(ALIZE_ARTIFACT, name, " is no ", dtype, " tensor of rank ", rank);
    return found->second;
}

void Safetensors::read(const Tensor &tensor, void *data) {
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(start_ + tensor.begin));
    file_.read(static_cast<char *>(data), static_cast<std::streamsize>(tensor.end - tensor.begin));
    if (!file_) fail(ALIZE_ARTIFACT, "it is cut off");
}

std::vector<int64_t> Safetensors::integers(const std::string &name) {
    const Tensor &found = tensor(name, "I64", 1);
    std::vector<int64_t> values((found.end - found.begin) / sizeof(int64_t));
    read(found, values.data());
    return values;
}

std::vector<float> Safetensors::floats(const std::string &name, size_t rank) {
    const Tensor &found = tensor(name, "F32", rank);
    std::vector<float> values((found.end - found.begin) / sizeof(float));
    read(found, values.data());
    return values;
}

}  // namespace alize
