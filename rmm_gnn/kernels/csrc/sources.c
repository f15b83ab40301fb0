/* What the library was compiled from: rmm_gnn.kernels.building.fingerprint(). */
#ifndef RMM_SOURCES
#error "compile by python -m rmm_gnn.kernels.building"
#endif

const char rmm_sources[] = RMM_SOURCES;
