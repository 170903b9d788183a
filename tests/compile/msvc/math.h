#ifdef __cplusplus
extern "C" {
#endif
float sqrtf(float);
float fmaf(float, float, float);
double sqrt(double);
#ifdef __cplusplus
}
#endif
