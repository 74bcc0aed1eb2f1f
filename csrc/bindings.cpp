// The Python face of ReplayStore: checks arrays, hands over pointers, lets go of the GIL.
//
// Arrays are refused rather than converted: exact dtype, exact shape, C-contiguous, and writeable
// where they are written. The GIL is never held while a lock of the store is awaited.
// std::invalid_argument becomes ValueError, std::out_of_range IndexError, std::runtime_error
// RuntimeError.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "replay_store.h"

namespace py = pybind11;

namespace {

using replay::DType;
using replay::FieldSpec;
using replay::ReplayStore;
using Shape = std::vector<std::size_t>;

DType parse_dtype(const std::string& field, const py::dtype& dtype) {
  const std::pair<const char*, DType> known[] = {
      {"bool", DType::kBool},       {"uint8", DType::kUint8},     {"int32", DType::kInt32},
      {"int64", DType::kInt64},     {"float16", DType::kFloat16}, {"float32", DType::kFloat32},
      {"float64", DType::kFloat64},
  };
  for (const auto& [name, value] : known) {
    if (dtype.equal(py::dtype(name))) return value;
  }
  throw std::invalid_argument("field '" + field + "' has dtype " +
                              py::str(dtype).cast<std::string>() +
                              "; expected bool, uint8, int32, int64, float16, float32 or float64");
}

std::size_t positive(const char* what, std::int64_t value) {
  if (value <= 0) {
    throw std::invalid_argument(std::string(what) + " must be positive, got " +
                                std::to_string(value));
  }
  return static_cast<std::size_t>(value);
}

std::string describe(const py::handle& value) { return py::repr(value).cast<std::string>(); }

// The arrays of one call: borrowed pointers, and references that keep them alive while the GIL is
// released.
class Columns {
 public:
  enum class Access { kRead, kWrite };

  Columns(const std::vector<FieldSpec>& fields, const std::vector<py::dtype>& dtypes,
          const py::dict& arrays, const Shape& leading, Access access) {
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const FieldSpec& field = fields[i];
      const py::str key(field.name);
      if (!arrays.contains(key)) throw std::invalid_argument("key '" + field.name + "' is missing");
      py::object value = arrays[key];
      data_.push_back(checked(field, dtypes[i], value, leading, access));
      alive_.push_back(std::move(value));
    }
    if (arrays.size() != fields.size()) throw_unexpected(fields, arrays);
  }

  std::byte* const* writable() const { return data_.data(); }
  const std::byte* const* readable() const { return data_.data(); }

  // Throws std::invalid_argument where two of the arrays share memory.
  void require_disjoint(const std::vector<FieldSpec>& fields, std::size_t steps) const {
    for (std::size_t i = 0; i < data_.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const auto a = reinterpret_cast<std::uintptr_t>(data_[i]);
        const auto b = reinterpret_cast<std::uintptr_t>(data_[j]);
        if (a < b + steps * fields[j].step_bytes() && b < a + steps * fields[i].step_bytes()) {
          throw std::invalid_argument("'" + fields[j].name + "' and '" + fields[i].name +
                                      "' share memory");
        }
      }
    }
  }

 private:
  static std::byte* checked(const FieldSpec& field, const py::dtype& dtype, const py::object& value,
                            const Shape& leading, Access access) {
    const std::string subject = "'" + field.name + "' ";
    if (!py::isinstance<py::array>(value)) {
      throw std::invalid_argument(subject + "must be a numpy array, got " +
                                  describe(py::type::of(value)));
    }
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!array.dtype().is(dtype) && !array.dtype().equal(dtype)) {
      throw std::invalid_argument(subject + "must have dtype " +
                                  py::str(dtype).cast<std::string>() + ", got " +
                                  py::str(array.dtype()).cast<std::string>());
    }
    if (!has_shape(array, leading, field.shape)) {
      Shape expected = leading;
      expected.insert(expected.end(), field.shape.begin(), field.shape.end());
      throw std::invalid_argument(subject + "must have shape " +
                                  describe(py::tuple(py::cast(expected))) + ", got " +
                                  describe(array.attr("shape")));
    }
    if ((array.flags() & py::array::c_style) == 0) {
      throw std::invalid_argument(subject + "must be C-contiguous");
    }
    if (access == Access::kWrite && !array.writeable()) {
      throw std::invalid_argument(subject + "must be writeable");
    }
    // The data pointer of a read-only array is only read from: append and restore take it as const.
    return static_cast<std::byte*>(const_cast<void*>(array.data()));
  }

  static bool has_shape(const py::array& array, const Shape& leading, const Shape& rest) {
    if (static_cast<std::size_t>(array.ndim()) != leading.size() + rest.size()) return false;
    for (std::size_t axis = 0; axis < leading.size() + rest.size(); ++axis) {
      const std::size_t expected =
          axis < leading.size() ? leading[axis] : rest[axis - leading.size()];
      if (static_cast<std::size_t>(array.shape(static_cast<py::ssize_t>(axis))) != expected) {
        return false;
      }
    }
    return true;
  }

  [[noreturn]] static void throw_unexpected(const std::vector<FieldSpec>& fields,
                                            const py::dict& arrays) {
    std::string expected;
    for (const FieldSpec& field : fields) {
      expected += (expected.empty() ? "" : ", ") + field.name;
    }
    throw std::invalid_argument("expected exactly the keys " + expected + ", got " +
                                describe(py::list(arrays)));
  }

  std::vector<std::byte*> data_;
  std::vector<py::object> alive_;
};

class Replay {
 public:
  using Field = std::tuple<std::string, py::dtype, Shape>;

  Replay(const std::vector<Field>& fields, std::int64_t streams, std::int64_t capacity_steps,
         std::uint64_t seed, std::int64_t threads)
      : dtypes_(dtypes_of(fields)),
        store_(specs_of(fields), first_of(fields), positive("streams", streams),
               positive("capacity_steps", capacity_steps), seed, positive("threads", threads)) {}

  void append(const py::dict& step) {
    const Columns columns(store_.fields(), dtypes_, step, {store_.streams()},
                          Columns::Access::kRead);
    const py::gil_scoped_release unlocked;
    store_.append(columns.readable());
  }

  void sample(std::int64_t batch, std::int64_t length, const py::dict& outputs) {
    const std::size_t rows = positive("batch", batch);
    const std::size_t steps = positive("length", length);
    const Columns columns(store_.fields(), dtypes_, outputs, {rows, steps},
                          Columns::Access::kWrite);
    columns.require_disjoint(store_.fields(), rows * steps);
    const py::gil_scoped_release unlocked;
    store_.sample(rows, steps, columns.writable());
  }

  std::optional<std::pair<std::uint64_t, std::uint64_t>> snapshot(std::size_t steps,
                                                                  const py::dict& outputs) const {
    const Columns columns(store_.fields(), dtypes_, outputs, {store_.streams(), steps},
                          Columns::Access::kWrite);
    columns.require_disjoint(store_.fields(), store_.streams() * steps);
    const py::gil_scoped_release unlocked;
    ReplayStore::Marks marks;
    if (!store_.snapshot(steps, columns.writable(), &marks)) return std::nullopt;
    return std::pair(marks.steps_added, marks.generator);
  }

  void restore(std::size_t steps, const py::dict& contents, std::uint64_t steps_added,
               std::uint64_t generator) {
    const Columns columns(store_.fields(), dtypes_, contents, {store_.streams(), steps},
                          Columns::Access::kRead);
    const py::gil_scoped_release unlocked;
    store_.restore(steps, columns.readable(), {steps_added, generator});
  }

  std::size_t steps() const {
    const py::gil_scoped_release unlocked;
    return store_.steps();
  }

  std::uint64_t steps_added() const {
    const py::gil_scoped_release unlocked;
    return store_.steps_added();
  }

  std::size_t step_bytes() const { return store_.step_bytes(); }

 private:
  static std::vector<py::dtype> dtypes_of(const std::vector<Field>& fields) {
    std::vector<py::dtype> dtypes;
    for (const auto& [name, dtype, shape] : fields) dtypes.push_back(dtype);
    return dtypes;
  }

  static std::vector<FieldSpec> specs_of(const std::vector<Field>& fields) {
    std::vector<FieldSpec> specs;
    for (const auto& [name, dtype, shape] : fields) {
      specs.push_back({name, parse_dtype(name, dtype), shape});
    }
    return specs;
  }

  static std::size_t first_of(const std::vector<Field>& fields) {
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if (std::get<0>(fields[i]) == "is_first") return i;
    }
    throw std::invalid_argument("fields must hold 'is_first', a boolean scalar");
  }

  const std::vector<py::dtype> dtypes_;
  ReplayStore store_;
};

}  // namespace

PYBIND11_MODULE(_replay, module) {
  module.doc() = "Storage and sampling of replayed steps; use mudreamer_fast.replay.";
  py::class_<Replay>(module, "Replay")
      .def(py::init<const std::vector<Replay::Field>&, std::int64_t, std::int64_t, std::uint64_t,
                    std::int64_t>(),
           py::arg("fields"), py::arg("streams"), py::arg("capacity_steps"), py::arg("seed"),
           py::arg("threads"))
      .def("append", &Replay::append, py::arg("step"))
      .def("sample", &Replay::sample, py::arg("batch"), py::arg("length"), py::arg("outputs"))
      .def("snapshot", &Replay::snapshot, py::arg("steps"), py::arg("outputs"))
      .def("restore", &Replay::restore, py::arg("steps"), py::arg("contents"),
           py::arg("steps_added"), py::arg("generator"))
      .def_property_readonly("steps", &Replay::steps)
      .def_property_readonly("steps_added", &Replay::steps_added)
      .def_property_readonly("step_bytes", &Replay::step_bytes);
}
