// A C++ program that translates raw video, with psp_rt in the same process and no copy between the two.
//
//   g++ -std=c++17 -O2 examples/video_host.cpp -o video_host $(python3-config --includes --ldflags --embed)
//   ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - | ./video_host .venv/bin/python model.engine 640 480 |
//       ffmpeg -f rawvideo -pix_fmt rgb24 -s 1024x1024 -i - out.mp4
//
// Frames come from standard input and go to standard output, packed RGB of one byte a channel. Python sees the
// program's own two buffers as NumPy arrays, so psp_rt reads the one and writes into the other. The first argument
// is the Python whose packages are used (`python3-config` must be of the same version); its lock is held by this
// thread throughout: a program with more threads takes it around `translate` (PyGILState_Ensure).

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

// Ends the program with Python's own message where a call into Python failed: psp_rt's errors say what to do.
PyObject* checked(PyObject* object) {
  if (object == nullptr) {
    PyErr_Print();
    std::exit(1);
  }
  return object;
}

void start(const char* python) {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, python);
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) Py_ExitStatusException(status);
}

// An array [height, width, 3] over memory that must outlive it.
PyObject* array_over(std::vector<unsigned char>& memory, long height, long width) {
  PyObject* numpy = checked(PyImport_ImportModule("numpy"));
  PyObject* view = checked(PyMemoryView_FromMemory(reinterpret_cast<char*>(memory.data()),
                                                   static_cast<Py_ssize_t>(memory.size()), PyBUF_WRITE));
  PyObject* flat = checked(PyObject_CallMethod(numpy, "frombuffer", "Os", view, "uint8"));
  PyObject* array = checked(PyObject_CallMethod(flat, "reshape", "lll", height, width, 3L));
  Py_DECREF(flat);
  Py_DECREF(view);
  Py_DECREF(numpy);
  return array;
}

long number(PyObject* object, const char* name) {
  PyObject* value = checked(PyObject_GetAttrString(object, name));
  const long found = PyLong_AsLong(value);
  Py_DECREF(value);
  return found;
}

// False where a frame is cut off; at a whole end of the input `ended` is set.
bool read_frame(std::vector<unsigned char>& frame, bool& ended) {
  const std::size_t count = std::fread(frame.data(), 1, frame.size(), stdin);
  ended = count == 0;
  return ended || count == frame.size();
}

}  // namespace

int main(int argc, char** argv) {
  const long width = argc == 5 ? std::atol(argv[3]) : 0, height = argc == 5 ? std::atol(argv[4]) : 0;
  if (width < 1 || height < 1) {
    std::fprintf(stderr, "usage: %s PYTHON ENGINE WIDTH HEIGHT < frames > results\n", argv[0]);
    return 2;
  }
  start(argv[1]);

  PyObject* psp_rt = checked(PyImport_ImportModule("psp_rt"));
  PyObject* kind = checked(PyObject_GetAttrString(psp_rt, "Translator"));
  PyObject* arguments = checked(Py_BuildValue("(s)", argv[2]));
  PyObject* settings = checked(Py_BuildValue("{s:s}", "color", "rgb"));
  PyObject* translator = checked(PyObject_Call(kind, arguments, settings));
  PyObject* manifest = checked(PyObject_GetAttrString(translator, "manifest"));
  PyObject* output = checked(PyObject_GetAttrString(manifest, "output"));
  const long result_height = number(output, "height"), result_width = number(output, "width");
  std::fprintf(stderr, "results are %ldx%ld\n", result_width, result_height);

  std::vector<unsigned char> frame(static_cast<std::size_t>(width * height * 3));
  std::vector<unsigned char> result(static_cast<std::size_t>(result_width * result_height * 3));
  PyObject* translate = checked(PyObject_GetAttrString(translator, "run"));
  PyObject* source = checked(Py_BuildValue("(N)", array_over(frame, height, width)));
  PyObject* target = checked(Py_BuildValue("{s:N}", "out", array_over(result, result_height, result_width)));

  long frames = 0;
  bool ended = false;
  while (read_frame(frame, ended) && !ended) {
    Py_DECREF(checked(PyObject_Call(translate, source, target)));
    if (std::fwrite(result.data(), 1, result.size(), stdout) != result.size()) {
      std::perror("cannot write a result");
      return 1;
    }
    ++frames;
  }
  if (!ended) {
    std::fprintf(stderr, "the input ends within frame %ld; expected %ldx%ld RGB\n", frames, width, height);
    return 1;
  }
  std::fprintf(stderr, "%ld frames\n", frames);
  for (PyObject* object : {target, source, translate, output, manifest, translator, settings, arguments, kind, psp_rt})
    Py_DECREF(object);
  return Py_FinalizeEx() < 0 ? 1 : 0;
}
