/* What a machine without a GPU answers: loaded in place of CUDA's libraries, which the engines'
 * wheels name as needed although nothing that the tests run calls them.
 *
 * Mooncake asks for its devices once and is told that there are none (cudaErrorNoDevice); the other
 * functions are here so that its symbols resolve.
 */

static const int no_device = 100;

int cudaGetDeviceCount(int *count) {
    *count = 0;
    return no_device;
}

const char *cudaGetErrorString(int error) {
    (void)error;
    return "no CUDA-capable device is detected";
}

#define NO_DEVICE(name) \
    int name(void) { return no_device; }

NO_DEVICE(cudaFreeHost)
NO_DEVICE(cudaGetDevice)
NO_DEVICE(cudaGetLastError)
NO_DEVICE(cudaHostRegister)
NO_DEVICE(cudaHostUnregister)
NO_DEVICE(cudaIpcCloseMemHandle)
NO_DEVICE(cudaIpcGetMemHandle)
NO_DEVICE(cudaIpcOpenMemHandle)
NO_DEVICE(cudaMallocHost)
NO_DEVICE(cudaMemcpy)
NO_DEVICE(cudaPointerGetAttributes)
NO_DEVICE(cudaSetDevice)
NO_DEVICE(cudaStreamSynchronize)
