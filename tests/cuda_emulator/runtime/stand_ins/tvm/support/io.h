// TVM's wheel lacks this header, which others of its headers include. Nothing of it is used here.
#pragma once
#include <stddef.h>

namespace tvm {
namespace support {

class Stream {
 public:
  virtual ~Stream() = default;
  template <class T> void Write(const T& value);
  template <class T> bool Read(T* value);
  template <class T> void WriteArray(const T* values, size_t count);
  template <class T> bool ReadArray(T* values, size_t count);
  size_t Write(const void* bytes, size_t count);
  size_t Read(void* bytes, size_t count);
};

}  // namespace support
}  // namespace tvm
