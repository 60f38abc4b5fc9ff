// Translates raw video in a C++ program: frames from standard input, results to standard output, packed RGB.
//
//   ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - |
//     build/host --python .venv/bin/python --engine inversion.engine --size 640x480 --faces |
//     ffmpeg -f rawvideo -pix_fmt rgb24 -s 640x480 -i - out.mp4
//
// Reading, translating and writing overlap: a worker thread translates one frame while the main thread reads the
// next and writes the one before. --compare N measures what C++ adds to a loop in Python, in one process.

#include "psp_rt.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
namespace py = pybind11;

struct Options {
  std::string python, engine, device = "auto", backend = "auto";
  long width = 0, height = 0, compare = 0;
  int threads = 0;
  bool faces = false;
};

[[noreturn]] void usage(const char* program) {
  std::fprintf(stderr,
               "usage: %s --python PYTHON --engine ENGINE --size WIDTHxHEIGHT [--faces]\n"
               "  [--device auto|cpu|cuda] [--backend auto|onnxruntime|openvino|tensorrt] [--threads N] [--compare N]\n",
               program);
  std::exit(2);
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int number = 1; number < argc; ++number) {
    const std::string name = argv[number];
    if (name == "--faces") {
      options.faces = true;
      continue;
    }
    if (number + 1 == argc) usage(argv[0]);
    const std::string value = argv[++number];
    if (name == "--python") options.python = value;
    else if (name == "--engine") options.engine = value;
    else if (name == "--device") options.device = value;
    else if (name == "--backend") options.backend = value;
    else if (name == "--threads") options.threads = std::atoi(value.c_str());
    else if (name == "--compare") options.compare = std::atol(value.c_str());
    else if (name != "--size" || std::sscanf(value.c_str(), "%ldx%ld", &options.width, &options.height) != 2)
      usage(argv[0]);
  }
  if (options.python.empty() || options.engine.empty() || options.width < 1 || options.height < 1) usage(argv[0]);
  return options;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A frame that is read, translated and written; its memory is used again for a later one.
struct Slot {
  std::vector<std::uint8_t> in, out;
  std::future<void> done;
};

void write_result(Slot& slot) {
  slot.done.get();  // an error of this frame arrives here
  if (std::fwrite(slot.out.data(), 1, slot.out.size(), stdout) != slot.out.size())
    throw psp_rt::Error("cannot write a result");
}

int translate(const Options& options, const psp_rt::Translator& translator) {
  const py::ssize_t height = options.faces ? options.height : translator.height();
  const py::ssize_t width = options.faces ? options.width : translator.width();
  std::fprintf(stderr, "results are %ldx%ld\n", static_cast<long>(width), static_cast<long>(height));

  std::vector<Slot> slots(3);  // one is read, one translated, one written
  for (Slot& slot : slots) {
    slot.in.resize(static_cast<std::size_t>(options.width * options.height * 3));
    slot.out.resize(static_cast<std::size_t>(width * height * 3));
  }
  long read = 0, written = 0;
  const auto start = Clock::now();
  psp_rt::Worker worker;  // destroyed before the slots whose memory it uses
  while (true) {
    Slot& slot = slots[static_cast<std::size_t>(read) % slots.size()];
    if (read - written == static_cast<long>(slots.size())) {
      write_result(slots[static_cast<std::size_t>(written) % slots.size()]);
      ++written;
    }
    const std::size_t count = std::fread(slot.in.data(), 1, slot.in.size(), stdin);
    if (count != slot.in.size()) {
      while (written < read) {
        write_result(slots[static_cast<std::size_t>(written) % slots.size()]);
        ++written;
      }
      if (count == 0) break;
      throw psp_rt::Error("the input ends within frame " + std::to_string(read) + "; expected " +
                          std::to_string(options.width) + "x" + std::to_string(options.height) + " RGB");
    }
    slot.done = worker.submit([&options, &translator, &slot, height, width] {
      const psp_rt::Frame in{slot.in.data(), options.height, options.width}, out{slot.out.data(), height, width};
      if (options.faces) translator.run_faces(in, out);
      else translator.run(in, out);
    });
    ++read;
  }
  std::fflush(stdout);
  std::fprintf(stderr, "%ld frames, %.1f a second\n", written, written / std::max(seconds_since(start), 1e-9));
  return 0;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Times the same calls from C++ and from a loop in Python, turn by turn, so that both see the same machine.
int compare(const Options& options, const psp_rt::Translator& translator) {
  std::vector<std::uint8_t> in(static_cast<std::size_t>(options.width * options.height * 3), 128);
  std::vector<std::uint8_t> out(static_cast<std::size_t>(translator.width() * translator.height() * 3));
  const psp_rt::Frame source{in.data(), options.height, options.width};
  const psp_rt::Frame target{out.data(), translator.height(), translator.width()};
  std::vector<double> of_cpp, of_python;
  psp_rt::with_python([] { py::exec("import psp_rt, warnings; warnings.simplefilter('ignore', psp_rt.InputWarning)"); });
  for (int warm = 0; warm < 5; ++warm) translator.run(source, target);

  for (long round = 0; round < options.compare; ++round) {
    const auto start = Clock::now();
    translator.run(source, target);
    of_cpp.push_back(seconds_since(start) * 1000);
    of_python.push_back(psp_rt::with_python([&] {
      py::dict scope;
      scope["run"] = translator.object().attr("run");
      scope["frame"] = psp_rt::Translator::array(source);
      scope["out"] = psp_rt::Translator::array(target);
      py::exec(
          "import time\n"
          "start = time.perf_counter()\n"
          "run(frame, out=out)\n"
          "took = time.perf_counter() - start\n",
          scope);
      return scope["took"].cast<double>() * 1000;
    }));
  }
  const double cpp = median(of_cpp), python = median(of_python);
  std::printf("{\"rounds\": %ld, \"cpp_ms\": %.3f, \"python_ms\": %.3f, \"ratio\": %.4f}\n", options.compare, cpp,
              python, cpp / python);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = read_options(argc, argv);
  try {
    psp_rt::Interpreter python(options.python);
    const psp_rt::Translator translator(options.engine, options.device, options.backend, options.threads);
    return options.compare > 0 ? compare(options, translator) : translate(options, translator);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
