// TVM's wheel lacks this header, which others of its headers include. Nothing of it is used here.
#pragma once

namespace tvm {
namespace support {

template <class T, class Enable = void>
struct Serializer {
  static constexpr bool enabled = false;
};

}  // namespace support
}  // namespace tvm
