// Python bindings of ReplayStore and BatchQueue: they check arrays, pass pointers and release the
// GIL.
//
// Arrays must have the exact dtype and shape, be C-contiguous, and be writeable where they are
// outputs; they are never converted. No call waits for a lock of the store with the GIL held.
// Errors: std::invalid_argument becomes ValueError, std::out_of_range IndexError,
//   std::runtime_error RuntimeError; NonFiniteError is a ValueError of its own, and FileError is
//   StorageError, a RuntimeError. std::bad_alloc becomes MemoryError, and std::system_error, for
//   files and threads that the system refuses, OSError.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "batch_queue.h"
#include "replay_store.h"

namespace py = pybind11;

namespace {

using replay::BatchQueue;
using replay::BatchShape;
using replay::DType;
using replay::FieldSpec;
using replay::Progress;
using replay::ReplayOptions;
using replay::ReplayStore;
using replay::SegmentPart;
using replay::Window;
using Shape = std::vector<std::size_t>;

// Releases the GIL for its lifetime, as py::gil_scoped_release does, but never unwinds a thread:
// CPython does so to threads that ask for the GIL while the interpreter ends, and would abort the
// process in the first destructor on the way. Such a thread waits here for the process to end.
class Unlocked {
 public:
  Unlocked() : thread_(PyEval_SaveThread()) {}
  ~Unlocked() {
#ifdef __GLIBCXX__
    try {
      PyEval_RestoreThread(thread_);
    } catch (const abi::__forced_unwind&) {
      while (true) pause();
    }
#else
    PyEval_RestoreThread(thread_);
#endif
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* thread_;
};

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

BatchShape batch_shape(std::int64_t batch_size, std::int64_t length) {
  return {positive("batch_size", batch_size), positive("length", length)};
}

std::string describe(const py::handle& value) { return py::repr(value).cast<std::string>(); }

// Python objects of one field. They are cached because creating them takes longer than a dict
// lookup.
struct PyField {
  py::str name;
  py::dtype dtype;
};

// The checked arrays of one call: their data pointers, and references that keep them alive while
// the GIL is released.
class Columns {
 public:
  enum class Access { kRead, kWrite };
  enum class Keys { kAll, kSome };

  // With Keys::kSome, the pointers of missing keys are null.
  Columns(const std::vector<FieldSpec>& fields, const std::vector<PyField>& py_fields,
          const py::dict& arrays, const Shape& leading, Access access, Keys keys = Keys::kAll) {
    data_.reserve(fields.size());
    alive_.reserve(fields.size());
    std::size_t present = 0;
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const FieldSpec& field = fields[i];
      const auto& [key, dtype] = py_fields[i];
      if (!arrays.contains(key)) {
        if (keys == Keys::kAll) throw std::invalid_argument("key '" + field.name + "' is missing");
        data_.push_back(nullptr);
        continue;
      }
      py::object value = arrays[key];
      data_.push_back(checked(field, dtype, value, leading, access));
      alive_.push_back(std::move(value));
      ++present;
    }
    if (arrays.size() != present) throw_unexpected(fields, arrays, keys);
  }

  std::byte* const* writable() const { return data_.data(); }
  const std::byte* const* readable() const { return data_.data(); }

  // Throws std::invalid_argument if two of the arrays overlap.
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
    const auto subject = [&field] { return "'" + field.name + "' "; };
    if (!py::isinstance<py::array>(value)) {
      throw std::invalid_argument(subject() + "must be a numpy array, got " +
                                  describe(py::type::of(value)));
    }
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!array.dtype().is(dtype) && !array.dtype().equal(dtype)) {
      throw std::invalid_argument(subject() + "must have dtype " +
                                  py::str(dtype).cast<std::string>() + ", got " +
                                  py::str(array.dtype()).cast<std::string>());
    }
    if (!has_shape(array, leading, field.shape)) {
      Shape expected = leading;
      expected.insert(expected.end(), field.shape.begin(), field.shape.end());
      throw std::invalid_argument(subject() + "must have shape " +
                                  describe(py::tuple(py::cast(expected))) + ", got " +
                                  describe(array.attr("shape")));
    }
    if ((array.flags() & py::array::c_style) == 0) {
      throw std::invalid_argument(subject() + "must be C-contiguous");
    }
    if (access == Access::kWrite && !array.writeable()) {
      throw std::invalid_argument(subject() + "must be writeable");
    }
    // A read-only array is accessed through readable() only, which restores the const.
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
                                            const py::dict& arrays, Keys keys) {
    std::string expected;
    for (const FieldSpec& field : fields) {
      expected += (expected.empty() ? "" : ", ") + field.name;
    }
    throw std::invalid_argument(
        (keys == Keys::kAll ? "expected exactly the keys " : "expected some of the keys ") +
        expected + ", got " + describe(py::list(arrays)));
  }

  std::vector<std::byte*> data_;
  std::vector<py::object> alive_;
};

using Handles = py::array_t<std::uint64_t>;

// The data pointer of an array of handles; null for None.
std::uint64_t* handles_of(const py::object& value, const BatchShape& batch) {
  if (value.is_none()) return nullptr;
  const Shape shape = {batch.batch_size, batch.length};
  const std::string expected =
      "handles must be a C-contiguous, writeable numpy array of uint64, shape " +
      describe(py::tuple(py::cast(shape)));
  if (!py::isinstance<py::array>(value)) throw std::invalid_argument(expected);
  auto array = py::reinterpret_borrow<py::array>(value);
  const Shape actual(array.shape(), array.shape() + array.ndim());
  if (!array.dtype().equal(py::dtype::of<std::uint64_t>()) || actual != shape ||
      (array.flags() & py::array::c_style) == 0 || !array.writeable()) {
    throw std::invalid_argument(expected);
  }
  return static_cast<std::uint64_t*>(array.mutable_data());
}

// Converts windows to an array (batches, rows, 2) of stream and first step, and back.
Handles windows_to_array(const std::vector<std::vector<Window>>& batches, std::size_t rows) {
  Handles array(Shape{batches.size(), rows, 2});
  std::uint64_t* output = array.mutable_data();
  for (const auto& windows : batches) {
    for (const Window& window : windows) {
      *output++ = window.stream;
      *output++ = window.start;
    }
  }
  return array;
}

std::vector<std::vector<Window>> windows_from_array(
    const py::array_t<std::uint64_t, py::array::c_style>& array) {
  if (array.ndim() != 3 || array.shape(2) != 2) {
    throw std::invalid_argument("windows must have shape (batches, rows, 2)");
  }
  std::vector<std::vector<Window>> batches(static_cast<std::size_t>(array.shape(0)));
  const std::uint64_t* input = array.data();
  for (auto& windows : batches) {
    windows.resize(static_cast<std::size_t>(array.shape(1)));
    for (Window& window : windows) {
      window = {static_cast<std::size_t>(input[0]), input[1]};
      input += 2;
    }
  }
  return batches;
}

class PyReplayStore {
 public:
  using Field = std::tuple<std::string, py::dtype, Shape>;

  PyReplayStore(const std::vector<Field>& fields, const ReplayOptions& options)
      : py_fields_(py_fields_of(fields)), store_(specs_of(fields), first_of(fields), options) {}

  void add(const py::dict& step) {
    const Columns columns(store_.fields(), py_fields_, step, {store_.streams()},
                          Columns::Access::kRead);
    const Unlocked unlocked;
    store_.add(columns.readable());
  }

  void sample(std::int64_t batch_size, std::int64_t length, const py::dict& outputs,
              const py::object& handles) {
    const BatchShape shape = batch_shape(batch_size, length);
    const Columns columns = output_columns(outputs, shape);
    std::uint64_t* handles_output = handles_of(handles, shape);
    const Unlocked unlocked;
    store_.sample(shape, columns.writable(), handles_output);
  }

  py::array_t<bool> write_back(const py::array_t<std::uint64_t, py::array::c_style>& handles,
                               const py::dict& values) {
    const Shape leading(handles.shape(), handles.shape() + handles.ndim());
    const Columns columns(store_.fields(), py_fields_, values, leading, Columns::Access::kRead,
                          Columns::Keys::kSome);
    py::array_t<bool> written(leading);
    const auto count = static_cast<std::size_t>(handles.size());
    const std::uint64_t* input = handles.data();
    bool* output = written.mutable_data();
    {
      const Unlocked unlocked;
      store_.write_back(count, input, columns.readable(), output);
    }
    return written;
  }

  std::optional<Progress> snapshot(std::size_t steps, const py::dict& outputs) {
    const Columns columns(store_.fields(), py_fields_, outputs, {store_.streams(), steps},
                          Columns::Access::kWrite);
    columns.require_disjoint(store_.fields(), store_.streams() * steps);
    const Unlocked unlocked;
    return store_.snapshot(steps, columns.writable());
  }

  void restore(std::size_t steps, const py::dict& contents, const Progress& progress) {
    const Columns columns(store_.fields(), py_fields_, contents, {store_.streams(), steps},
                          Columns::Access::kRead);
    const Unlocked unlocked;
    store_.restore(steps, columns.readable(), progress);
  }

  void copy_from(PyReplayStore& other) {
    const Unlocked unlocked;
    store_.copy_from(other.store_);
  }

  std::size_t steps() const {
    const Unlocked unlocked;
    return store_.steps();
  }

  std::uint64_t steps_added() const {
    const Unlocked unlocked;
    return store_.steps_added();
  }

  std::uint64_t generator() const {
    const Unlocked unlocked;
    return store_.generator();
  }

  std::size_t step_bytes() const { return store_.step_bytes(); }

  std::optional<SegmentPart> write_segment(std::uint64_t step, const std::filesystem::path& path) {
    const Unlocked unlocked;
    return store_.write_segment(step, path);
  }

  void map_segment(std::uint64_t step, const std::filesystem::path& path) {
    const Unlocked unlocked;
    store_.map_segment(step, path);
  }

  void load_segment(const SegmentPart& part, const std::filesystem::path& path, bool mark_first) {
    const Unlocked unlocked;
    store_.load_segment(part, path, mark_first);
  }

  void finish_loading(std::uint64_t begin, const Progress& progress) {
    const Unlocked unlocked;
    store_.finish_loading(begin, progress);
  }

  // Checks that the arrays of a batch fit, are writeable and do not overlap.
  Columns output_columns(const py::dict& outputs, const BatchShape& shape) const {
    Columns columns(store_.fields(), py_fields_, outputs, {shape.batch_size, shape.length},
                    Columns::Access::kWrite);
    columns.require_disjoint(store_.fields(), shape.batch_size * shape.length);
    return columns;
  }

  ReplayStore& wrapped() { return store_; }

 private:
  static std::vector<PyField> py_fields_of(const std::vector<Field>& fields) {
    std::vector<PyField> py_fields;
    for (const auto& [name, dtype, shape] : fields) py_fields.push_back({name, dtype});
    return py_fields;
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

  const std::vector<PyField> py_fields_;
  ReplayStore store_;
};

class PyBatchQueue {
 public:
  PyBatchQueue(PyReplayStore& store, const BatchShape& shape, const std::vector<py::dict>& outputs,
               const std::vector<py::object>& handles)
      : batch_size_(shape.batch_size) {
    if (handles.size() != outputs.size()) {
      throw std::invalid_argument("handles must be given, or None, for each of the outputs");
    }
    std::vector<BatchQueue::Slot> slots;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      columns_.push_back(store.output_columns(outputs[i], shape));
      slots.emplace_back();
      for (std::size_t field = 0; field < store.wrapped().fields().size(); ++field) {
        slots.back().outputs.push_back(columns_.back().writable()[field]);
      }
      slots.back().handles = handles_of(handles[i], shape);
      handles_.push_back(handles[i]);
    }
    queue_.reset(new BatchQueue(store.wrapped(), shape, slots));
  }

  ~PyBatchQueue() {
    // The worker may wait for a thread that needs the GIL.
    const Unlocked unlocked;
    queue_.reset();
  }

  std::size_t next() {
    const Unlocked unlocked;
    return queue_->next();
  }

  void hold_view(bool handed_over) {
    const Unlocked unlocked;
    queue_->hold_view(handed_over);
  }

  void release_view() {
    const Unlocked unlocked;
    queue_->release_view();
  }

  Handles pending(bool with_last) const {
    std::vector<std::vector<Window>> batches;
    {
      const Unlocked unlocked;
      batches = queue_->pending(with_last);
    }
    return windows_to_array(batches, batch_size_);
  }

  bool resume(const py::array_t<std::uint64_t, py::array::c_style>& windows) {
    std::vector<std::vector<Window>> batches = windows_from_array(windows);
    const Unlocked unlocked;
    return queue_->resume(std::move(batches));
  }

  void close() {
    const Unlocked unlocked;
    queue_->close();
  }

 private:
  std::size_t batch_size_;
  std::vector<Columns> columns_;     // keeps the arrays alive
  std::vector<py::object> handles_;  // likewise
  std::unique_ptr<BatchQueue, BatchQueue::Deleter> queue_;
};

void bind_structs(py::module_& module) {
  py::class_<Progress>(module, "Progress")
      .def(py::init([](std::uint64_t steps_added, std::uint64_t generator) {
             return Progress{steps_added, generator};
           }),
           py::kw_only(), py::arg("steps_added"), py::arg("generator"))
      .def_readonly("steps_added", &Progress::steps_added)
      .def_readonly("generator", &Progress::generator);
  py::class_<SegmentPart>(module, "SegmentPart")
      .def(py::init([](std::uint64_t first, std::size_t steps, std::uint32_t checksum) {
             return SegmentPart{first, steps, checksum};
           }),
           py::kw_only(), py::arg("first"), py::arg("steps"), py::arg("checksum"))
      .def_readonly("first", &SegmentPart::first)
      .def_readonly("steps", &SegmentPart::steps)
      .def_readonly("checksum", &SegmentPart::checksum);
}

void bind_store(py::module_& module) {
  py::class_<PyReplayStore>(module, "ReplayStore")
      .def(py::init([](const std::vector<PyReplayStore::Field>& fields, std::int64_t streams,
                       std::int64_t stream_capacity_steps, std::uint64_t seed, std::int64_t threads,
                       std::int64_t spare_steps, std::optional<std::int64_t> segment_steps) {
             ReplayOptions options;
             options.streams = positive("streams", streams);
             options.stream_capacity_steps =
                 positive("stream_capacity_steps", stream_capacity_steps);
             options.seed = seed;
             options.threads = positive("threads", threads);
             options.spare_steps = positive("spare_steps", spare_steps);
             if (segment_steps) options.segment_steps = positive("segment_steps", *segment_steps);
             return std::make_unique<PyReplayStore>(fields, options);
           }),
           py::arg("fields"), py::kw_only(), py::arg("streams"), py::arg("stream_capacity_steps"),
           py::arg("seed"), py::arg("threads"), py::arg("spare_steps"), py::arg("segment_steps"))
      .def("add", &PyReplayStore::add, py::arg("step"))
      .def("sample", &PyReplayStore::sample, py::kw_only(), py::arg("batch_size"),
           py::arg("length"), py::arg("outputs"), py::arg("handles"))
      .def("write_back", &PyReplayStore::write_back, py::arg("handles").noconvert(),
           py::arg("values"))
      .def("snapshot", &PyReplayStore::snapshot, py::arg("steps"), py::arg("outputs"))
      .def("restore", &PyReplayStore::restore, py::arg("steps"), py::arg("contents"),
           py::arg("progress"))
      .def("copy_from", &PyReplayStore::copy_from, py::arg("other"))
      .def("write_segment", &PyReplayStore::write_segment, py::arg("step"), py::arg("path"))
      .def("map_segment", &PyReplayStore::map_segment, py::arg("step"), py::arg("path"))
      .def("load_segment", &PyReplayStore::load_segment, py::arg("part"), py::arg("path"),
           py::kw_only(), py::arg("mark_first"))
      .def("finish_loading", &PyReplayStore::finish_loading, py::arg("begin"), py::arg("progress"))
      .def_property_readonly("steps", &PyReplayStore::steps)
      .def_property_readonly("steps_added", &PyReplayStore::steps_added)
      .def_property_readonly("generator", &PyReplayStore::generator)
      .def_property_readonly("step_bytes", &PyReplayStore::step_bytes);
}

void bind_queue(py::module_& module) {
  py::class_<PyBatchQueue>(module, "BatchQueue")
      .def(py::init([](PyReplayStore& store, std::int64_t batch_size, std::int64_t length,
                       const std::vector<py::dict>& outputs,
                       const std::vector<py::object>& handles) {
             return std::make_unique<PyBatchQueue>(store, batch_shape(batch_size, length), outputs,
                                                   handles);
           }),
           py::keep_alive<1, 2>(), py::arg("store"), py::kw_only(), py::arg("batch_size"),
           py::arg("length"), py::arg("outputs"), py::arg("handles"))
      .def("next", &PyBatchQueue::next)
      .def("hold_view", &PyBatchQueue::hold_view, py::arg("handed_over"))
      .def("release_view", &PyBatchQueue::release_view)
      .def("pending", &PyBatchQueue::pending, py::arg("with_last"))
      .def("resume", &PyBatchQueue::resume, py::arg("windows"))
      .def("close", &PyBatchQueue::close);
}

// A file's name need not be UTF-8, which the text of a Python exception would otherwise have to be.
void set_error(PyObject* kind, const char* text) {
  const auto decoded = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(text));
  if (decoded) PyErr_SetObject(kind, decoded.ptr());
}

void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const replay::FileError& failed) {
    set_error(py::module_::import("mudreamer_fast._replay").attr("StorageError").ptr(),
              failed.what());
  } catch (const std::system_error& refused) {
    errno = refused.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
  }
}

}  // namespace

PYBIND11_MODULE(_replay, module) {
  module.doc() = "Storage and sampling of replayed steps; use mudreamer_fast.replay.";
  py::register_exception<replay::NonFiniteError>(module, "NonFiniteError", PyExc_ValueError);
  py::exception<replay::FileError>(module, "StorageError", PyExc_RuntimeError);  // see translate()
  py::register_exception_translator(&translate);
  bind_structs(module);
  bind_store(module);
  bind_queue(module);
}
