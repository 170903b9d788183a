/* As much of the Windows headers as jamba.h uses, to compile it as for Visual Studio where there is no Windows SDK.
 * Beside it what it uses of the C library. */
#ifndef WINDOWS_H
#define WINDOWS_H

typedef void *HANDLE;
typedef unsigned long DWORD;
typedef int BOOL;
typedef wchar_t WCHAR;

typedef union LARGE_INTEGER {
    long long QuadPart;
} LARGE_INTEGER;

typedef struct OVERLAPPED {
    unsigned long long Internal, InternalHigh;
    DWORD Offset, OffsetHigh;
    HANDLE hEvent;
} OVERLAPPED;

#define INVALID_HANDLE_VALUE ((HANDLE)(long long)-1)
#define GENERIC_READ 0x80000000u
#define FILE_SHARE_READ 1
#define FILE_SHARE_WRITE 2
#define FILE_SHARE_DELETE 4
#define OPEN_EXISTING 3
#define FILE_ATTRIBUTE_NORMAL 128
#define CP_UTF8 65001
#define MB_ERR_INVALID_CHARS 8
#define ERROR_FILE_NOT_FOUND 2
#define ERROR_PATH_NOT_FOUND 3
#define PAGE_READONLY 2
#define FILE_MAP_READ 4
#define YieldProcessor() ((void)0)

#ifdef __cplusplus
extern "C" {
#endif
HANDLE CreateFileW(const WCHAR *, DWORD, DWORD, void *, DWORD, DWORD, HANDLE);
DWORD GetLastError(void);
BOOL GetFileSizeEx(HANDLE, LARGE_INTEGER *);
BOOL CloseHandle(HANDLE);
int MultiByteToWideChar(unsigned, DWORD, const char *, int, WCHAR *, int);
HANDLE CreateFileMappingA(HANDLE, void *, DWORD, DWORD, DWORD, const char *);
void *MapViewOfFile(HANDLE, DWORD, DWORD, DWORD, size_t);
BOOL UnmapViewOfFile(const void *);
BOOL ReadFile(HANDLE, void *, DWORD, DWORD *, OVERLAPPED *);
BOOL QueryPerformanceCounter(LARGE_INTEGER *);
BOOL QueryPerformanceFrequency(LARGE_INTEGER *);
BOOL SwitchToThread(void);
#ifdef __cplusplus
}
#endif

#endif
