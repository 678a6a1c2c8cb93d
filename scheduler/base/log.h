/*
 * The log: one line an event, "2026-11-23T18:46:45Z text".  A process has one log; lines go to stderr until
 * log_to_fd gives it a file (append mode; one write(2) per line, so that lines of several processes do not
 * mix).
 */
#ifndef DTX_BASE_LOG_H
#define DTX_BASE_LOG_H

void log_to_fd(int fd);
void log_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
