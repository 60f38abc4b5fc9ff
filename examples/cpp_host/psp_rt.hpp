// psp_rt for C++: one interpreter for the program, translators that any thread may call, frames that stay in the
// program's own memory.
//
//   psp_rt::Interpreter python("/path/to/venv/bin/python");  // in main, before all else
//   psp_rt::Translator translator("inversion.engine");
//   translator.run({in, 480, 640}, {out, translator.height(), translator.width()});
//
// `run` copies no frame in either direction; `run_faces` copies its result. A call holds Python's lock only while Python
// runs; the engine lets go of it while it computes, and no other thread of the program needs it. An error of Python
// arrives as psp_rt::Error, with Python's message.

#pragma once

#include <pybind11/embed.h>
#include <pybind11/numpy.h>

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace psp_rt {

namespace py = pybind11;

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A frame in the program's memory: RGB, one byte a channel, rows without gaps. It must outlive the call it is given to.
struct Frame {
  std::uint8_t* data;
  py::ssize_t height, width;

  std::size_t size() const { return static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3; }
};

// Runs a function with Python's lock, and turns errors of Python into psp_rt::Error.
template <typename Function>
auto with_python(Function function) -> decltype(function()) {
  py::gil_scoped_acquire lock;
  try {
    return function();
  } catch (py::error_already_set& error) {
    // The object of the error belongs to Python: only its text leaves this block.
    std::string kind = py::str(error.type().attr("__name__"));
    std::string text = py::str(error.value());
    throw Error(kind + ": " + text);
  }
}

// Python itself; one for the whole program, and the last to be destroyed.
class Interpreter {
 public:
  // Args: python, the executable of the environment whose packages are used.
  explicit Interpreter(const std::string& python) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;  // Ctrl-C stays the program's
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, python.c_str());
    if (PyStatus_Exception(status)) {
      PyConfig_Clear(&config);
      throw Error("Python cannot start: " + std::string(status.err_msg == nullptr ? "" : status.err_msg));
    }
    interpreter_ = std::make_unique<py::scoped_interpreter>(&config);
    unlocked_ = std::make_unique<py::gil_scoped_release>();
  }

  ~Interpreter() {
    unlocked_.reset();
    interpreter_.reset();
  }

  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

 private:
  std::unique_ptr<py::scoped_interpreter> interpreter_;
  std::unique_ptr<py::gil_scoped_release> unlocked_;
};

// An engine. Threads that call one translator take turns; a clone runs beside it on the same weights.
class Translator {
 public:
  explicit Translator(const std::string& engine, const std::string& device = "auto",
                      const std::string& backend = "auto", int threads = 0) {
    with_python([&] {
      py::dict settings;
      settings["color"] = "rgb";
      settings["device"] = device;
      settings["backend"] = backend;
      if (threads > 0) settings["threads"] = threads;
      take(py::module_::import("psp_rt").attr("Translator")(engine, **settings));
    });
  }

  ~Translator() {
    if (object_ == nullptr) return;
    py::gil_scoped_acquire lock;
    try {
      object_->attr("close")();
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("psp_rt::Translator");
    }
    object_.reset();
    run_.reset();
  }

  Translator(Translator&&) = default;
  Translator(const Translator&) = delete;
  Translator& operator=(const Translator&) = delete;

  py::ssize_t height() const { return height_; }
  py::ssize_t width() const { return width_; }

  Translator clone() const {
    return with_python([&] { return Translator(object_->attr("clone")()); });
  }

  // Translates a frame of any size into one of the engine's.
  void run(const Frame& in, const Frame& out) const {
    with_python([&] { (*run_)(array(in), py::arg("out") = array(out)); });
  }

  // Finds the faces of a frame, aligns them, translates them and pastes them back. Returns how many there were; a
  // frame without a face is copied. `out` has the size of `in`, and may be the same memory.
  std::size_t run_faces(const Frame& in, const Frame& out) const {
    if (out.size() != in.size()) throw Error("run_faces() needs an output of the input's size");
    return with_python([&]() -> std::size_t {
      try {
        py::object found = object_->attr("run_faces")(array(in), py::arg("faces") = "all", py::arg("paste") = true);
        py::list pasted = found.attr("pasted");
        auto pixels = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>(pasted[0]);
        std::memcpy(out.data, pixels.data(), out.size());
        return py::len(found.attr("faces"));
      } catch (py::error_already_set& error) {
        const std::string text = py::str(error.value());
        if (text.find("no face was found") == std::string::npos) throw;
        if (out.data != in.data) std::memcpy(out.data, in.data, in.size());
        return 0;
      }
    });
  }

  // The Python object, for what is not here; use it inside of with_python.
  const py::object& object() const { return *object_; }

  // A NumPy array over a frame, without a copy.
  static py::array_t<std::uint8_t> array(const Frame& frame) {
    py::capsule nobody(frame.data, [](void*) {});  // the memory stays the program's
    return py::array_t<std::uint8_t>({frame.height, frame.width, py::ssize_t{3}}, frame.data, nobody);
  }

 private:
  explicit Translator(py::object object) { take(std::move(object)); }

  void take(py::object object) {
    object_ = std::make_unique<py::object>(std::move(object));
    run_ = std::make_unique<py::object>(object_->attr("run"));
    const py::object output = object_->attr("manifest").attr("output");
    height_ = output.attr("height").cast<py::ssize_t>();
    width_ = output.attr("width").cast<py::ssize_t>();
  }

  std::unique_ptr<py::object> object_, run_;
  py::ssize_t height_ = 0, width_ = 0;
};

// A thread that does what it is given, in order; at most `waiting` jobs wait.
class Worker {
 public:
  explicit Worker(std::size_t waiting = 2) : waiting_(waiting), thread_([this] { work(); }) {}

  ~Worker() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Queues a job, and waits while the queue is full. Its error arrives at the future.
  std::future<void> submit(std::function<void()> job) {
    std::packaged_task<void()> task(std::move(job));
    std::future<void> done = task.get_future();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return jobs_.size() < waiting_; });
    jobs_.push_back(std::move(task));
    changed_.notify_all();
    return done;
  }

 private:
  void work() {
    while (true) {
      std::packaged_task<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return ended_ || !jobs_.empty(); });
        if (jobs_.empty()) return;  // what was given before the end is done
        task = std::move(jobs_.front());
        jobs_.pop_front();
      }
      changed_.notify_all();
      task();
    }
  }

  const std::size_t waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::packaged_task<void()>> jobs_;
  bool ended_ = false;
  std::thread thread_;  // the last member: it uses all others
};

}  // namespace psp_rt
