typedef int jmp_buf[16];
