// Two devices in this machine's memory that torch takes for devices of their own: what lies on one
// cannot be added to what lies on the CPU or on the other, and there is no float64, as on many. They
// compute by the CPU's kernels.
//
// After torch's own example of a backend, torch_openreg (test/cpp_extensions).

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <set>

namespace {

using at::Device;
using at::Tensor;
using c10::DeviceIndex;
using c10::IntArrayRef;
using c10::SymIntArrayRef;

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr DeviceIndex COUNT = 2;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
thread_local DeviceIndex current = 0;
thread_local bool computing = false;  // by the CPU, which copies there and back
std::atomic<int64_t> bytes{0}, reads{0};

// Operations whose result's size or value the CPU waits for.
const std::set<std::string> READS{"aten::equal", "aten::nonzero", "aten::masked_select",
                                  "aten::_unique2", "aten::bincount"};

// Memory

struct Block {
  void* start;
  size_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  bytes -= block->size;
  c10::free_cpu(block->start);
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{size ? c10::alloc_cpu(size) : nullptr, size};
    bytes += size;
    return {block->start, block, &release, Device(TYPE, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
};

Allocator allocator;
REGISTER_ALLOCATOR(TYPE, &allocator);

// What torch asks of a kind of device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = TYPE;
  c10::DeviceType type() const override { return TYPE; }
  Device getDevice() const override { return Device(TYPE, current); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  Device exchangeDevice(Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return COUNT; }
  c10::Stream getStream(Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  c10::Stream getNewStream(Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isPinnedPtr(const void*) const override { return false; }
  DeviceIndex deviceCount() const override { return COUNT; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex index) const override { current = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    return std::exchange(current, index);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current : exchangeDevice(index);
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};

Hooks hooks;

// Operations: those on storage and shape here, the arithmetic by the CPU

c10::DeviceGuard on(std::optional<Device> device) {
  auto wanted = device && device->has_index() ? *device : Device(TYPE, current);
  TORCH_CHECK(wanted.index() < COUNT, "There is no device ", wanted);
  return c10::DeviceGuard(wanted);
}

at::ScalarType supported(std::optional<at::ScalarType> dtype) {
  auto type = c10::dtype_or_default(dtype);
  TORCH_CHECK(type != at::kDouble, "The device has no float64, as Apple's have none");
  return type;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  auto guard = on(device);
  return at::detail::empty_generic(size, &allocator, KEYS, supported(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  auto guard = on(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, KEYS, supported(dtype));
}

// The same memory as the CPU sees it.
Tensor memory(const Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU).requires_grad(false));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  reads += to.is_cpu() && !computing;
  memory(to).copy_(memory(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar number(const Tensor& tensor) {
  ++reads;
  return memory(tensor).item();
}

Tensor as_strided(const Tensor& tensor, SymIntArrayRef size, SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(tensor, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor reshape_alias(const Tensor& tensor, SymIntArrayRef size, SymIntArrayRef stride) {
  return as_strided(tensor, size, stride, tensor.sym_storage_offset());
}

Tensor view(const Tensor& tensor, SymIntArrayRef size) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(size));
}

const Tensor& resize(const Tensor& tensor, SymIntArrayRef size,
                     std::optional<at::MemoryFormat> format) {
  return at::native::resize_(tensor, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor& set_storage(Tensor& tensor, at::Storage storage) {
  int64_t length = storage.nbytes() / tensor.dtype().itemsize();
  return at::cpu::set_(tensor, storage, 0, {length}, {1});
}

Tensor& set_part(Tensor& tensor, at::Storage storage, int64_t offset, IntArrayRef size,
                 IntArrayRef stride) {
  return at::cpu::set_(tensor, storage, offset, size, stride);
}

void check(const std::string& name, std::optional<Device>& device, const Tensor& tensor,
           bool index = false) {
  if (!tensor.defined() || (tensor.is_cpu() && (tensor.dim() == 0 || index))) return;
  if (!device) device = tensor.device();
  TORCH_CHECK(*device == tensor.device(), "Expected all tensors to be on the same device, but found ",
              *device, " and ", tensor.device(), " in ", name);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
                   IntArrayRef output_padding, int64_t groups) {
  std::optional<Device> device = input.device();
  check("convolution", device, weight);
  if (bias) check("convolution", device, *bias);
  return at::convolution(memory(input), memory(weight), bias ? memory(*bias) : Tensor(), stride,
                         padding, dilation, transposed, output_padding, groups)
      .contiguous()
      .to(*device);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> mask) {
  auto [a, b, c] = at::convolution_backward(memory(gradient), memory(input), memory(weight),
                                            IntArrayRef{weight.size(transposed ? 1 : 0)}, stride,
                                            padding, dilation, transposed, output_padding, groups,
                                            mask);
  auto back = [&](const Tensor& x) { return x.defined() ? x.to(input.device()) : x; };
  return {back(a), back(b), back(c)};
}

void by_the_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  auto name = c10::toString(operation.operator_name());
  bool indexes = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
  std::optional<Device> device;
  for (const auto& value : torch::jit::last(*stack, operation.schema().arguments().size())) {
    if (value.isTensor()) check(name, device, value.toTensor());
    if (value.isTensorList())
      for (const Tensor& one : value.toTensorVector()) check(name, device, one);
    if (value.isOptionalTensorList())
      for (const std::optional<Tensor>& one : value.toOptionalTensorVector())
        if (one) check(name, device, *one, indexes);
  }
  reads += READS.count(operation.schema().name());
  auto guard = on(device && device->type() == TYPE ? device : std::nullopt);
  auto before = std::exchange(computing, true);
  at::native::cpu_fallback(operation, stack);
  computing = before;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", number);
  library.impl("as_strided", as_strided);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("view", view);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Storage_storage_offset", set_part);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("bytes", [] { return bytes.load(); });
  module.def("reads", [] { return reads.load(); });
  module.def("current", [] { return current; });
  module.def("set_current", [](DeviceIndex index) { current = index; });
}
