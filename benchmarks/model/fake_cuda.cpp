// What PyTorch asks of a GPU before it runs anything on one, answered without one: enough for fake `cuda` tensors, which
// have shapes and no numbers, to go through autograd in a build of PyTorch without CUDA. No kernel can run.
//
// Page-locked memory is ordinary memory that is remembered, so that `is_pinned` tells the two apart as it would on a GPU.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <map>
#include <mutex>
#include <new>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device the_device(DeviceType::CUDA, 0);
const Stream the_stream(Stream::DEFAULT, the_device);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return the_device; }
  Device getDevice() const override { return the_device; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return the_stream; }
  Stream getDefaultStream(Device) const override { return the_stream; }
  Stream exchangeStream(Stream) const noexcept override { return the_stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

// Leaked, as PyTorch may ask for them until the process ends.
std::mutex& lock() {
  static auto* made = new std::mutex;
  return *made;
}
std::map<const char*, size_t>& pinned() {  // begin -> bytes
  static auto* made = new std::map<const char*, size_t>;
  return *made;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::GetCPUAllocator()->raw_allocate(bytes > 0 ? bytes : 1);
    std::lock_guard<std::mutex> held(lock());
    pinned()[static_cast<const char*>(data)] = bytes;
    return {data, data, &release, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  static void release(void* data) {
    {
      std::lock_guard<std::mutex> held(lock());
      pinned().erase(static_cast<const char*>(data));
    }
    c10::GetCPUAllocator()->raw_deallocate(data);
  }
};

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> held(lock());
  auto after = pinned().upper_bound(static_cast<const char*>(data));
  if (after == pinned().begin()) return false;
  auto [begin, bytes] = *--after;
  return static_cast<const char*>(data) < begin + (bytes > 0 ? bytes : 1);
}

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* made = new PinnedAllocator;
    return made;
  }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    static auto* made = new at::Generator(at::detail::createCPUGenerator());
    return *made;
  }
};

// PyTorch makes its hooks once, at the first question, and keeps them: they are replaced where they lie.
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

template <class Kind>
void put_hooks() {
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Kind();
}

std::atomic<const c10::impl::DeviceGuardImplInterface*>& guard_of_cuda() {
  return c10::impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)];
}

}  // namespace

extern "C" {

// 0 when it is done; 1 when this build of PyTorch has CUDA, which is left alone.
int install_fake_cuda() {
  if (guard_of_cuda().load() != nullptr || at::detail::getCUDAHooks().hasCUDA()) return 1;
  static auto* guard = new Guard;
  guard_of_cuda().store(guard);
  put_hooks<Hooks>();
  return 0;
}

void remove_fake_cuda() {
  guard_of_cuda().store(nullptr);
  put_hooks<at::CUDAHooksInterface>();
}
}
