// The runtime as one translation unit; see runtime.h. Compiled once, without instrumentation.
#include "runtime/unwatched.h"
//
#include "runtime/job.h"
