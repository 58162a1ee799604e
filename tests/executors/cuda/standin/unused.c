// What pycuda 2026.1 links against with CUDA 12.6 or 13.0 and zpipe never calls: present, so that it loads, and refused.

#include "standin.h"

#define NEVER_CALLED(name) \
    CUresult name(void) { return mistake(#name " is called, which the stand-in does not have"), NOT_SUPPORTED; }

NEVER_CALLED(cuArray3DCreate_v2) NEVER_CALLED(cuArray3DGetDescriptor_v2) NEVER_CALLED(cuArrayCreate_v2)
NEVER_CALLED(cuArrayDestroy) NEVER_CALLED(cuArrayGetDescriptor_v2) NEVER_CALLED(cuCtxAttach) NEVER_CALLED(cuCtxCreate_v2)
NEVER_CALLED(cuCtxCreate_v4) NEVER_CALLED(cuCtxDisablePeerAccess) NEVER_CALLED(cuCtxEnablePeerAccess)
NEVER_CALLED(cuCtxGetApiVersion) NEVER_CALLED(cuCtxGetCacheConfig) NEVER_CALLED(cuCtxGetLimit)
NEVER_CALLED(cuCtxGetSharedMemConfig) NEVER_CALLED(cuCtxSetCacheConfig) NEVER_CALLED(cuCtxSetLimit)
NEVER_CALLED(cuCtxSetSharedMemConfig) NEVER_CALLED(cuDeviceCanAccessPeer) NEVER_CALLED(cuDeviceGetByPCIBusId)
NEVER_CALLED(cuDeviceGetPCIBusId) NEVER_CALLED(cuFuncGetAttribute) NEVER_CALLED(cuFuncSetAttribute)
NEVER_CALLED(cuFuncSetCacheConfig) NEVER_CALLED(cuFuncSetSharedSize) NEVER_CALLED(cuIpcCloseMemHandle)
NEVER_CALLED(cuIpcGetEventHandle) NEVER_CALLED(cuIpcGetMemHandle) NEVER_CALLED(cuIpcOpenEventHandle)
NEVER_CALLED(cuIpcOpenMemHandle_v2) NEVER_CALLED(cuLaunch) NEVER_CALLED(cuLaunchGrid) NEVER_CALLED(cuLaunchGridAsync)
NEVER_CALLED(cuLinkAddData_v2) NEVER_CALLED(cuLinkAddFile_v2) NEVER_CALLED(cuLinkComplete) NEVER_CALLED(cuLinkCreate_v2)
NEVER_CALLED(cuLinkDestroy) NEVER_CALLED(cuMemAllocManaged) NEVER_CALLED(cuMemAllocPitch_v2) NEVER_CALLED(cuMemGetAddressRange_v2)
NEVER_CALLED(cuMemHostGetDevicePointer_v2) NEVER_CALLED(cuMemHostGetFlags) NEVER_CALLED(cuMemHostRegister_v2)
NEVER_CALLED(cuMemHostUnregister) NEVER_CALLED(cuMemcpy2DAsync_v2) NEVER_CALLED(cuMemcpy2DUnaligned_v2)
NEVER_CALLED(cuMemcpy2D_v2) NEVER_CALLED(cuMemcpy3DAsync_v2) NEVER_CALLED(cuMemcpy3DPeer) NEVER_CALLED(cuMemcpy3DPeerAsync)
NEVER_CALLED(cuMemcpy3D_v2) NEVER_CALLED(cuMemcpyAtoA_v2) NEVER_CALLED(cuMemcpyAtoD_v2) NEVER_CALLED(cuMemcpyAtoH_v2)
NEVER_CALLED(cuMemcpyDtoA_v2) NEVER_CALLED(cuMemcpyDtoD_v2) NEVER_CALLED(cuMemcpyDtoH_v2) NEVER_CALLED(cuMemcpyHtoA_v2)
NEVER_CALLED(cuMemcpyHtoD_v2) NEVER_CALLED(cuMemcpyPeer) NEVER_CALLED(cuMemcpyPeerAsync) NEVER_CALLED(cuMemsetD16Async)
NEVER_CALLED(cuMemsetD16_v2) NEVER_CALLED(cuMemsetD2D16Async) NEVER_CALLED(cuMemsetD2D16_v2) NEVER_CALLED(cuMemsetD2D32Async)
NEVER_CALLED(cuMemsetD2D32_v2) NEVER_CALLED(cuMemsetD2D8Async) NEVER_CALLED(cuMemsetD2D8_v2) NEVER_CALLED(cuMemsetD32Async)
NEVER_CALLED(cuMemsetD32_v2) NEVER_CALLED(cuMemsetD8Async) NEVER_CALLED(cuMemsetD8_v2) NEVER_CALLED(cuModuleGetGlobal_v2)
NEVER_CALLED(cuModuleGetSurfRef) NEVER_CALLED(cuModuleGetTexRef) NEVER_CALLED(cuModuleLoad) NEVER_CALLED(cuModuleLoadData)
NEVER_CALLED(cuParamSetSize) NEVER_CALLED(cuParamSetTexRef) NEVER_CALLED(cuParamSetf) NEVER_CALLED(cuParamSeti)
NEVER_CALLED(cuParamSetv) NEVER_CALLED(cuProfilerInitialize) NEVER_CALLED(cuProfilerStart) NEVER_CALLED(cuProfilerStop)
NEVER_CALLED(cuStreamAttachMemAsync) NEVER_CALLED(cuSurfRefGetArray) NEVER_CALLED(cuSurfRefSetArray) NEVER_CALLED(cuTexRefCreate)
NEVER_CALLED(cuTexRefDestroy) NEVER_CALLED(cuTexRefGetAddressMode) NEVER_CALLED(cuTexRefGetAddress_v2)
NEVER_CALLED(cuTexRefGetArray) NEVER_CALLED(cuTexRefGetFilterMode) NEVER_CALLED(cuTexRefGetFlags) NEVER_CALLED(cuTexRefGetFormat)
NEVER_CALLED(cuTexRefSetAddress2D_v3) NEVER_CALLED(cuTexRefSetAddressMode) NEVER_CALLED(cuTexRefSetAddress_v2)
NEVER_CALLED(cuTexRefSetArray) NEVER_CALLED(cuTexRefSetFilterMode) NEVER_CALLED(cuTexRefSetFlags) NEVER_CALLED(cuTexRefSetFormat)
