/*
 * Inside the scheduler.  Nothing outside of this folder includes it, but its tests.
 *
 * Who may touch what.  The loop thread (loop.c) is the only one that changes the model: objects, experiments,
 * jobs, workers.  It holds s->mutex while it does so and lets go of it (slow_begin/slow_end) around whatever
 * takes long: writing the catalog, files, starting processes.  FUSE threads read the model under s->mutex;
 * what they may change themselves is marked "FUSE threads too".  Since nobody but the loop changes the model,
 * pointers that the loop holds stay good across slow_begin/slow_end.
 *
 * Every transition goes through object_event, experiment_event or job_event: catalog first (committed,
 * synced), then memory, then the log.  When the catalog cannot be written they return an error and nothing
 * has changed; the loop comes back to it a second later, because all drivers look at states, not at edges.
 */
#ifndef DTX_SCHED_INTERNAL_H
#define DTX_SCHED_INTERNAL_H

#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "mnt-layout/layout.h"
#include "mnt-layout/spec.h"
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"
#include "scheduler/proto.h"
#include "scheduler/sched.h"
#include "scheduler/states.h"

enum {
    NAME_CAP = 256,     /* of an object, with NUL (layout.h) */
    JOB_NAME_MAX = 63,  /* bytes */
    MAX_JOBS = 1000,    /* of one experiment */
    MAX_SPEC = 1 << 20, /* bytes of a spec or prompt */
    MAX_TOGETHER = 256, /* jobs on one worker; what bounds them is its memory */
    MAX_AHEAD = 4,      /* of them, those that do not compute yet: it prepares their data */
    MAX_WORKERS = 64,
    MAX_CHECKS = 2, /* checks at the same time */
    WORKER_TIMEOUT_S =
        600,       /* a worker that says nothing for so long hangs, if the configuration says nothing else */
    HIDDEN_S = 60, /* how long an unlinked generated file stays away */
};
#define SECOND_NS ((int64_t)1000000000)

struct catalog;
struct check;
struct worker;
struct experiment;
struct watcher;

/* Datasets, parameter groups, evaluations, plugins, base and tuned models, services, compare and service
 * prompts. Everything protected by s->mutex. */
enum { OBJECT_BUCKETS = 8192, INTAKE_BUCKETS = 4096, EXPERIMENT_BUCKETS = 4096, GONE_BUCKETS = 4096 };

struct object {
    int64_t id; /* catalog row */
    struct object *hash_next;
    enum object_kind kind;
    char name[2 * NAME_CAP]; /* of a service's prompt: SERVICE/PROMPT */
    enum state state;
    char *reason; /* NULL: none */
    uid_t uid;
    gid_t gid;
    int64_t created, changed; /* wall clock, ns */
    int64_t size;             /* bytes of its files */
    char stamp[96];           /* of its files when it was taken: count, bytes, newest change */
    json_t *spec;   /* normalized; of a tuned model: base, experiment, job, dataset, score, metadata */
    json_t *report; /* of the check; of a prompt: its answers */
    /* not in the catalog */
    mode_t closed; /* privacy.c */
    struct check *check;
    struct asking *asking; /* a prompt being answered */
    int64_t retry_at;      /* mono: not before */
    int64_t told;          /* mono: FUSE threads too: when the log last said that it is held */
    int64_t touched;       /* mono: FUSE threads too: somebody was allowed to change it */
    struct {
        uint64_t requests, failed, tokens;
        double seconds, ttft;
    } served; /* a service, since start */
};

struct job {
    int64_t id;
    struct experiment *exp;
    int number; /* from 1; 0: the untuned base's row */
    char name[NAME_CAP];
    char model[NAME_CAP]; /* as the spec names it: BASE or tuned/EXP.JOB */
    char base[NAME_CAP];  /* the base model under it, "" until known */
    char init[NAME_CAP];  /* tuned model it goes on from, or "" */
    char dataset[NAME_CAP], paramgroup[NAME_CAP];
    long long seed;
    bool has_seed;
    json_t *overrides; /* of the spec, or NULL */
    json_t *params;    /* pinned parameter group with overrides and seed, NULL until pinned */
    enum state state, finetune;
    char *reason;
    bool stop_asked; /* end training now, export and score */
    bool has_run;    /* a worker has begun it once */
    bool suspect;    /* was on a worker that died: runs alone */
    int deaths_alone;
    long long death_step; /* where it was when its worker died */
    json_t *result;       /* of the worker, NULL until then */
    char score_key[65];   /* base rows: what was scored with what */
    json_t *data;         /* {"spec","sha256"} of the dataset when it was given to a worker */
    bool cached;          /* its token cache is made: the dataset is no longer needed */
    int64_t created, started, finished, changed;
    /* not in the catalog */
    struct worker
        *worker; /* who has it now; may still be set for a while after the job left its running states */
    bool held_dataset;   /* the worker still needs the dataset's files */
    bool cleanup;        /* cancelled: remove its files once no worker has it */
    json_t *progress;    /* last progress message, NULL: none */
    int64_t progress_at; /* mono */
    long long saved_step;
    bool begun;       /* with worker: it computes */
    bool waits;       /* with worker: it does not fit beside what runs there now */
    uint64_t too_big; /* bits of the workers whose devices it can never fit */
    int died_on;      /* index + 1 of the worker that last died while this job was alone there, 0: none */
    bool recalled;    /* with worker: told to give it back, another one is idle */
    int64_t waiting_since; /* mono: could not be placed since */
    int64_t retry_at;
};

struct experiment {
    int64_t id;
    struct experiment *hash_next;
    char name[NAME_CAP];
    enum state state;
    char *reason;
    char *spec_reason; /* a later spec of the same name was refused: why; NULL: fine */
    uid_t uid;
    gid_t gid;
    int64_t created, started, finished, changed;
    int priority;
    char *text;   /* the spec as it was dropped */
    char sha[65]; /* of text */
    json_t *spec; /* normalized */
    json_t *pins; /* {"paramgroups":{NAME:{}},"evaluation":{}|null,"models":{NAME:{"base","init"}}} */
    struct job **jobs;
    int njobs;
    struct job **rows; /* untuned bases */
    int nrows;
    /* not in the catalog */
    char stamp[96]; /* of the spec file */
    bool deleted;
    int on_workers;  /* jobs and rows that have a worker; most experiments have none, and are passed over */
    int running;     /* jobs on workers, while dispatching */
    unsigned looked; /* s->transitions when it was last tried to start it */
    int64_t look_at; /* mono: try again then at the latest */
    int64_t retry_at;
};

struct gone {
    char name[NAME_CAP], stamp[96];
    struct gone *next;
};

/* A drop that is not settled, or was lately touched.  One for each object root.  Protected by s->mutex; FUSE
 * threads too. */
TAILQ_HEAD(intake_list, intake);
struct intake {
    char path[PATH_MAX / 4]; /* of the root, relative to the mount: datasets/NAME, paramgroups/NAME.json */
    enum object_kind kind;
    char name[2 * NAME_CAP];
    bool folder;
    bool dirty;             /* changed since it was last taken */
    bool maybe;             /* something happened that may not have changed a byte: compare the stamps */
    int64_t maybe_at;       /* mono: not before */
    bool meta;              /* with maybe: nothing but chmod, chown or utimes came, through the mount */
    bool gone;              /* the root was removed */
    bool complete;          /* renamed into place, or has _SUCCESS: nothing to wait for */
    bool success;           /* complete because of _SUCCESS */
    bool wait_long;         /* empty, or does not parse yet: give it the long wait */
    enum drop_event behind; /* with maybe: what inotify saw */
    int64_t found_age;      /* by the scan: how long its newest change was ago, ns */
    unsigned gen;           /* counts changes */
    unsigned modes;         /* the same of modes, owners and times */
    unsigned announced;     /* gen at which the loop last looked */
    int64_t retry_at;       /* mono: the catalog could not be written */
    int writers;            /* local ones that have it open */
    int remote;             /* handles of an NFS server that were written through and not closed since */
    bool released;          /* a RELEASE was seen since the last open */
    int64_t last;           /* mono, of the last change */
    int64_t last_drop;      /* mono, of the last event that came through the mount */
    int64_t look_at;        /* mono: next look at a base model's shards */
    struct caller who;
    bool has_who;
    bool owner_known; /* who is the file's owner */
    mode_t closed;    /* privacy.c: as far as the root's mode says it */
    char *no_space;   /* why a file of it was cut off, NULL: none was */
    char *cut_off;    /* that file */
    bool rests;       /* in which list it is */
    TAILQ_ENTRY(intake) list;
    struct intake *hash_next;
};

enum worker_state { WS_DOWN, WS_STARTING, WS_UP };

struct worker { /* protected by s->mutex */
    int index;
    char device[32]; /* argument: cpu, cuda:0 */
    char label[32];  /* devices/LABEL: cpu0, gpu0 */
    int threads;
    uint64_t share; /* bytes of memory, where several share what the machine has; 0: it has its own */
    enum worker_state state;
    pid_t pid;
    int fd; /* socket, -1 */
    struct buf in, out;
    enum proto_type held_type; /* a message that could not be acted on yet (catalog not writable) */
    json_t *held_body;
    int64_t started, start_at; /* mono; not before (backoff) */
    int failures;              /* in a row */
    bool quitting;
    bool let_go;             /* FUSE threads too: start afresh, a base that it keeps in memory changes */
    int64_t eof_at;          /* mono: its socket closed; it is killed if it does not end */
    int64_t heard_at;        /* mono: it last said something (every second, unless a step takes longer) */
    bool hung;               /* it was killed because it said nothing */
    char job_base[NAME_CAP]; /* of the jobs it has */
    char base[NAME_CAP];     /* that it has open, "" none */
    int njobs;
    int ahead, waiting;    /* of them, counted while dispatching: not begun, without memory */
    int asks;              /* outstanding */
    json_t *hello, *stats; /* last hello and device messages */
    char *trouble;         /* why it is down */
};

struct hidden { /* FUSE threads too */
    char *path;
    int64_t until; /* mono */
    struct hidden *next;
};

/* What a FUSE thread asks of the loop and waits for. */
struct command {
    int (*fn)(struct sched *s, struct command *c);
    const struct layout_match *m;
    const char *word;
    const struct caller *who;
    int rc;
    bool done;
    struct command *next;
};

struct settings { /* the administrator's configuration file */
    uid_t admins[64];
    int nadmins;
    bool nfs_admins;
    struct quota {
        uid_t uid;
        int64_t bytes; /* -1: none */
    } quotas[256];
    int nquotas;
    int64_t quota_default, store_max; /* -1: none */
    int64_t store_reserve, log_max;
    int64_t work_ns;    /* training state of ended jobs is kept so long; -1: for ever */
    int worker_timeout; /* s; 0: not given, -1: never */
    uint64_t memory;    /* bytes of each device that DTX may use; 0: all but a twentieth */
    struct device_memory {
        char label[32];
        uint64_t bytes;
    } device_memory[MAX_WORKERS];
    int ndevice_memory;
};

/* fair.c */
/* How many of something each owner has.  Owners beyond the last slot share it. */
struct by_owner {
    struct {
        uid_t uid;
        int n;
    } of[64];
    int owners;
};
int *count_of_owner(struct by_owner *b, uid_t uid);

struct owner {
    uid_t uid;
    int running;
    bool present, was_present; /* has jobs that run or could, in this round and the last */
    int64_t served;            /* ns of running jobs */
};
struct fair { /* zeroed at first */
    struct owner *v;
    int n, cap;
    int64_t at; /* mono: of the last round */
};
struct turn { /* what decides between two jobs */
    int priority;
    bool suspect;
    uid_t uid;
    int owner_running;
    int64_t owner_served;
    int exp_running;
    int64_t exp_id;
    int number;
};

struct sched {
    pthread_mutex_t mutex;
    pthread_cond_t answered; /* a command is done */
    pthread_t thread, notifier;
    bool thread_on, notifier_on;
    bool closing; /* protected by mutex */
    int store_fd, tree_fd, lock_fd, log_fd;
    char *store, *config_path, *worker_path, *devices, *version;
    int64_t started;         /* wall */
    int wake;                /* eventfd */
    struct catalog *catalog; /* loop thread only */
    char *trouble;           /* the catalog or the store cannot be written: why */
    struct settings settings;
    atomic_uint limits_gen; /* counts readings of the settings */

    struct object **objects;
    int nobjects, objects_cap;
    struct object *by_name[OBJECT_BUCKETS]; /* the same, by hash of kind and name (NFC) */
    struct experiment **exps;
    int nexps, exps_cap;
    struct experiment *exp_by_name[EXPERIMENT_BUCKETS]; /* the same, by hash of name; deleted ones too */
    struct worker *workers;
    int nworkers;
    struct intake_list intakes;                    /* something is to be done about them, now or later */
    struct intake_list resting;                    /* nothing is; remembered for a while, the oldest first */
    struct intake *intake_by_path[INTAKE_BUCKETS]; /* both */
    struct hidden *hidden;
    struct gone *gone[GONE_BUCKETS]; /* loop thread only; by hash of name */
    struct command *commands;
    struct check *checks; /* loop thread only */
    struct watcher *watcher;
    int64_t watch_at; /* mono: inotify is not looked at before; loop thread only */
    int64_t looks_at; /* mono: the loop sleeps until then at most */
    long long next_ask;
    unsigned transitions; /* counted: what waits looks again when something happened */
    bool locks_free;      /* no worker of an earlier dtxd is left */
    int64_t locks_look, log_locks;
    int64_t limits_look; /* mono: when limits_round has something to do */
    int64_t waits_at;    /* mono: when jobs without a place are looked at next */

    pthread_cond_t changes_cond;
    char **changes; /* paths for on_change */
    int nchanges;
    bool notify_end;
    struct fair fair; /* loop thread only */
    size_t (*usage)(void *arg, struct sched_usage *out, size_t max);
    void *usage_arg;
    int64_t told_no_space; /* mono: when the log last said so, and of what; FUSE threads too */
    char told_path[256];
    void (*on_change)(void *arg, const char *path);
    void *on_change_arg;
};

/* sched.c */
int sched_prepare(const struct sched_config *c, struct sched **out,
                  struct dtx_err *e); /* open without threads */
void slow_begin(struct sched *s);     /* loop thread: let go of the mutex for something slow */
void slow_end(struct sched *s);
void sched_wake(struct sched *s);
void sched_changed(struct sched *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* changes.c: every path that shows it; listed: what its folder lists has changed too */
void object_changed(struct sched *s, const struct object *o, bool listed);
void experiment_changed(struct sched *s, const struct experiment *x, bool listed);
void job_changed(struct sched *s, const struct job *j, bool listed);
int sched_run_command(struct sched *s, struct command *c); /* FUSE threads: hand over and wait */
void set_text(char **field, const char *text);             /* free, strdup; NULL or "" clears */
void set_json(json_t **field, json_t *value);              /* decref, steal */
/* Not with the mutex held. */
bool caller_may(struct sched *s, const struct caller *who, uid_t uid, gid_t gid, mode_t mode);
void give_to(struct sched *s, const char *tree_path, uid_t uid, gid_t gid); /* chown, only as root */
void give_at(int dirfd, const char *name, uid_t uid, gid_t gid);

/* loop.c */
void *loop_main(void *arg);
void loop_round(struct sched *s, int64_t now); /* one round of all drivers; tests call it */
/* What FUSE threads wait for.  Drivers with thousands of things to write let them through in between; objects
 * may be gone afterwards. */
void loop_commands(struct sched *s);

/* catalog.c: loop thread only, outside of the mutex */
int catalog_open(const char *path, struct catalog **out, struct dtx_err *e);
void catalog_close(struct catalog *c);
int catalog_begin(struct catalog *c, struct dtx_err *e);
int catalog_commit(struct catalog *c, struct dtx_err *e);
void catalog_rollback(struct catalog *c);
int catalog_load(struct catalog *c, struct sched *s, struct dtx_err *e);
int catalog_put_object(struct catalog *c, struct object *o, enum state to, const char *reason,
                       struct dtx_err *e);
int catalog_del_object(struct catalog *c, const struct object *o, struct dtx_err *e);
int catalog_put_experiment(struct catalog *c, struct experiment *x, enum state to, const char *reason,
                           struct dtx_err *e);
int catalog_put_gone(struct catalog *c, const char *name, const char *stamp, struct dtx_err *e);
int catalog_del_gone(struct catalog *c, const char *name, struct dtx_err *e);
int catalog_del_experiment(struct catalog *c, const struct experiment *x, struct dtx_err *e);
int catalog_put_job(struct catalog *c, struct job *j, enum state to, enum state finetune, const char *reason,
                    struct dtx_err *e);
int catalog_event(struct catalog *c, const char *machine, const char *name, enum state from, enum event ev,
                  enum state to, const char *reason, struct dtx_err *e);

/* objects.c */
enum machine object_machine(enum object_kind kind);
uint64_t name_hash(enum object_kind kind, const char *name); /* the same for names that are equal */
struct object *object_find(struct sched *s, enum object_kind kind, const char *name);
struct object *object_ready(struct sched *s, enum object_kind kind,
                            const char *name); /* READY, settled; or NULL */
struct object *object_new(enum object_kind kind, const char *name);
void object_free(struct object *o);
/* A transition.  Deleted objects (GONE) are freed: o must not be used when *o_gone.  0 or an error (nothing
 * changed). */
int object_event(struct sched *s, struct object *o, enum event ev, const char *reason);
/* Find or make (in memory; the first event writes it). */
struct object *object_get(struct sched *s, enum object_kind kind, const char *name, const struct caller *who);
void object_drop_unsaved(struct sched *s,
                         struct object *o); /* made by object_get, but its first event failed */
void object_path(const struct object *o, char *out, size_t n); /* relative to the mount */
void object_keep(struct sched *s, struct object *o); /* write spec, report, stamp, without an event */
struct experiment *experiment_new(struct sched *s, const char *name); /* in the list, in memory */
void experiment_drop(struct sched *s, struct experiment *x);          /* out of the list, freed */
struct job *job_new(struct experiment *x, int number);                /* in jobs, or with number 0 in rows */
struct experiment *experiment_find(struct sched *s, const char *name);
struct experiment *experiment_find_deleted(struct sched *s,
                                           const char *name); /* a worker still has a job of it */
struct job *job_find(struct experiment *x, const char *name);
struct job *job_find_worker(struct sched *s, const struct worker *w,
                            const char *id); /* EXP/JOB, if w has it */
void experiment_free(struct experiment *x);
void job_free(struct job *j);
int experiment_event(struct sched *s, struct experiment *x, enum event ev, const char *reason);
int job_event(struct sched *s, struct job *j, enum event ev, const char *reason);
int job_keep(struct sched *s, struct job *j);
void experiment_log(struct sched *s, struct experiment *x, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void catalog_trouble(struct sched *s,
                     const struct dtx_err *e); /* note (and log once) that it cannot be written */

/* names.c */
struct place { /* what object a path is about */
    enum object_kind kind;
    char name[2 * NAME_CAP];
    char root[PATH_MAX / 4];
    bool folder;      /* the root is a folder */
    bool is_root;     /* the path is the root itself */
    const char *rest; /* below the root, "" if is_root; points into the path */
};
bool place_of(const char *path, struct place *p);
const char *base_name(const char *path);
/* NN-PARAMGROUP[-DATASET][-MODEL][-sSEED] */
struct job_axes {
    bool dataset, model, seed;
};
void job_name(const struct job *j, const struct job_axes *axes, int njobs, char *out, size_t n);

/* stamp.c: no lock needed */
struct stamp {
    int64_t files, bytes;
    int64_t newest; /* newest change, wall ns */
    uint64_t hash;  /* of names, sizes and times; the same in whatever order */
    uid_t uid;      /* of the root */
    gid_t gid;
    bool success;      /* holds _SUCCESS */
    mode_t closed;     /* privacy.c */
    char foreign[256]; /* name of a file that the root's owner may not read (privacy.c), "" none */
    int64_t names;     /* looked at, files and folders */
    bool unseen;       /* there is more, or deeper, than was looked at */
};
int stamp_path(int tree_fd, const char *path, struct stamp *out);
void stamp_text(const struct stamp *st, char *out, size_t n);
bool model_shards_complete(int tree_fd, const char *dir);

/* privacy.c: mutex held */
struct model_ref;
mode_t privacy_of(mode_t mode);
/* The same of what lies in an object of this owner; foreign: its owner may not read it. */
mode_t privacy_of_part(const struct stat *st, uid_t uid, gid_t gid, bool *foreign);
mode_t privacy_of_path(int tree_fd, const char *path); /* 0 where nothing is there */
bool object_readable(const struct object *o, uid_t uid, gid_t gid);
bool model_readable(struct sched *s, const struct model_ref *ref, uid_t uid, gid_t gid);
const char *public_words(const struct object *o, const char *reason); /* reason, unless it is private */
const char *public_reason(const struct object *o);                    /* NULL: none */
mode_t experiment_closed(const struct sched *s, const struct experiment *x);
const char *experiment_words(const struct sched *s, const struct experiment *x,
                             const char *reason); /* the same for its and its jobs' */
mode_t model_closed(struct sched *s, const struct model_ref *ref);
/* Give experiments/NAME/ the mode that follows from the spec and what it uses. */
void experiment_close_folder(struct sched *s, const struct experiment *x);

/* intake.c */
/* Mutex held.  who NULL: seen by inotify or the scan of the store, not through the mount.  True: the loop
 * should look. */
bool intake_note(struct sched *s, enum drop_event ev, const char *path, const struct caller *who,
                 int64_t now);
bool intake_receiving(struct sched *s, const char *path); /* mutex held; as sched_receiving */
/* By the scan: what nobody knows yet is RECEIVING before anybody asks, as it was before a crash. */
void intake_found(struct sched *s, struct intake *i);
void intake_round(struct sched *s, int64_t now);
int64_t intake_due(const struct intake *i); /* mono time at which it is complete if nothing more comes */
int64_t intake_next(const struct sched *s); /* mono: when intake_round has something to do */
/* Why a drop that is being received is cut off, or NULL. */
const char *intake_no_space(const struct sched *s, enum object_kind kind, const char *name);

/* intake_table.c: mutex held */
void intakes_init(struct sched *s);
void intakes_free(struct sched *s);
struct intake *intake_find(struct sched *s, const char *path); /* NULL */
/* The intake of a place, a new one if there is none; it is looked at in the next round.  NULL: no memory. */
struct intake *intake_get(struct sched *s, const struct place *p, int64_t now);
void intake_rest(struct sched *s, struct intake *i);
void intakes_forget(struct sched *s, int64_t before); /* resting ones that were last changed before that */

/* space.c: mutex held */
enum { MAX_OWNERS = 1024 };
/* What owners' files take; NULL and 0 where nobody counts.  The caller frees. */
struct sched_usage *space_usage(struct sched *s, size_t *n);
/* Words why the jobs of an owner wait: the quota is used up.  False: it is not. */
bool space_used_up(struct sched *s, uid_t uid, char *words, size_t n);

/* take.c: a complete drop becomes an object */
/* 0: taken (or refused in words); -EAGAIN: not complete yet; other errors: the catalog cannot be written. */
int take_drop(struct sched *s, struct intake *i, bool last_chance);
int take_parse(enum object_kind kind, const char *path, const char *text, size_t n, json_t **out,
               struct dtx_err *e);
bool error_passes(int rc); /* no memory or descriptors just now: nothing is wrong with the file */
/* No symbolic link on the way, nothing outside of dirfd. */
int open_beneath(int dirfd, const char *path, int flags);
int read_beneath(int dirfd, const char *path, size_t max, struct buf *b, struct dtx_err *e);

/* watch.c */
void scan_store(struct sched *s, int64_t now);
int watcher_open(struct sched *s, struct dtx_err *e);
void watcher_close(struct sched *s);
int watcher_fd(const struct sched *s);
bool watcher_read(struct sched *s, int64_t now); /* true: there was something */

/* checks.c */
void checks_round(struct sched *s, int64_t now);
void check_cancel(struct sched *s, struct object *o);
void checks_end(struct sched *s);
int checks_fds(struct sched *s, int *fds, int max);

/* experiments.c */
/* refused: words, NULL if none.  -EAGAIN: does not parse (yet) and final is false. */
int experiment_take(struct sched *s, const char *name, const struct buf *text, const char *refused,
                    const struct caller *who, const char *stamp, bool final);
void experiments_round(struct sched *s, int64_t now);
int experiment_refusal(struct sched *s, const char *name, const char *text, size_t n, struct dtx_err *e);
int experiment_delete(struct sched *s, struct experiment *x);
/* The spec's file has other times or modes, and the same content; x NULL: it is a deleted experiment's. */
int experiment_restamp(struct sched *s, struct experiment *x, const char *name, const char *stamp);
/* A folder left from a deleted experiment of this name. */
void experiment_trash(struct sched *s, const char *name);
/* Once no worker of an earlier dtxd is left: files of deleted experiments, cancelled and successful jobs that
 * a crash left. */
void experiments_sweep(struct sched *s);

/* gone.c: experiments that were deleted, with the stamp that their spec file had: what still lies there is
 * not a new one */
int gone_note(struct sched *s, const char *name, const char *stamp);
const char *gone_stamp(const struct sched *s, const char *name); /* or NULL */
/* Remove what a crash left of them, and forget those whose spec is gone too. */
void gone_sweep(struct sched *s);
void gone_free(struct sched *s);

/* jobs.c */
int jobs_expand(struct experiment *x, struct dtx_err *e); /* fills x->jobs from x->spec; in memory */
json_t *job_spec(struct job *j);                          /* of the job_start or score message */
void job_pin_data(struct sched *s, struct job *j);
int rows_expand(struct sched *s, struct experiment *x); /* fills x->rows */
void job_paths(const struct job *j, char *job_dir, char *work_dir, char *tuned, size_t n);
void job_remove_files(struct sched *s, struct job *j);
void job_remove_work(struct sched *s, const struct job *j); /* training state, token caches */
bool job_runs(const struct job *j); /* in a state in which a worker has or should have it */

/* fair.c: whose turn it is */
/* A round: begin (what ran since the last one is charged), present for all that have jobs, ready. */
void fair_begin(struct fair *f, int64_t now);
void fair_present(struct fair *f, uid_t uid, int running);
void fair_ready(struct fair *f);
struct owner *fair_owner(struct fair *f, uid_t uid); /* NULL: no memory; good until the next new owner */
int fair_order(const struct turn *x, const struct turn *y); /* as of qsort: who is first */

/* dispatch.c */
void dispatch_round(struct sched *s, int64_t now);

/* workers.c */
int workers_plan(struct sched *s, struct dtx_err *e);
void workers_round(struct sched *s, int64_t now);
void worker_input(struct sched *s, struct worker *w, int64_t now);
void worker_output(struct sched *s, struct worker *w);
int worker_send(struct sched *s, struct worker *w, enum proto_type type, json_t *body); /* steals body */
/* Is there one whose device may be large enough? */
bool worker_for(const struct sched *s, const struct job *j);
/* The same, of another one than w. */
bool worker_beside(const struct sched *s, const struct worker *w, const struct job *j);
bool worker_has_base(const struct worker *w, const char *base); /* in memory, or about to be */
void workers_end(struct sched *s);
/* messages.c */
int worker_message(struct sched *s, struct worker *w, enum proto_type type, json_t *body);
void job_release(struct sched *s, struct job *j); /* its worker has let go */
void worker_lost(struct sched *s, struct worker *w, const char *why);

/* control.c */
int control_experiment(struct sched *s, struct experiment *x, const char *word);
int control_job(struct sched *s, struct job *j, const char *word);
bool control_word_known(enum layout_writer w, const char *word);

/* best.c */
struct job *best_job(const struct experiment *x); /* NULL: none */
/* EXP.best: the best one whose model was not removed, NULL: none.  Mutex held. */
struct job *best_model(struct sched *s, const struct experiment *x);
bool tuned_ready(struct sched *s, const struct job *j); /* the model that it made is there */
bool job_has_score(const struct job *j, double *score);
int job_rank_order(const void *a, const void *b); /* qsort of struct job * : best first */

/* compare.c: prompts of models/compare and services/NAME/ask */
void asking_round(struct sched *s, int64_t now);
void asking_answer(struct sched *s, struct worker *w, json_t *body);
void asking_worker_lost(struct sched *s, struct worker *w);
void asking_cancel(struct sched *s, struct object *o);

/* services.c */
struct model_ref {
    char shown[NAME_CAP]; /* base/NAME, NAME of a tuned model or service */
    char base[NAME_CAP], tuned[NAME_CAP];
};
/* BASE, base/BASE, tuned/EXP.JOB, tuned/EXP.best, EXP.best, EXP.JOB.  0; -ENOENT not there yet; -EINVAL */
int model_resolve(struct sched *s, const char *text, struct model_ref *out, struct dtx_err *e);
void services_round(struct sched *s, int64_t now);
bool service_still_there(struct sched *s, const struct object *o);
int service_take(struct sched *s, struct object *o, const char *path, struct dtx_err *e);
void service_counted(struct sched *s, const char *service, const json_t *answer);

/* tuned.c */
int tuned_register(struct sched *s, struct job *j);

/* config.c */
void config_load(struct sched *s);
int config_parse(const char *path, const char *text, size_t n, struct settings *out, struct dtx_err *e);
int64_t settings_quota(const struct settings *set, uid_t uid); /* -1: none */

/* limits.c */
void limits_round(struct sched *s, int64_t now);
/* A log that is longer than max bytes keeps the newer half of that. */
int log_trim(int dirfd, const char *path, int64_t max);

/* groups.c: no lock needed */
bool user_in_group(uid_t uid, gid_t gid); /* as the user database says */

/* api.c */
struct subject { /* what a generated path is about */
    struct object *object;
    struct experiment *exp;
    struct job *job;
    struct worker *worker;
};
bool subject_of(struct sched *s, const struct layout_match *m,
                struct subject *out); /* mutex held; false: not there */

/* categories.c */
bool category_has(struct sched *s, const struct layout_match *m, struct subject *out);
int list_category(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
                  void *arg);
int list_category_value(struct sched *s, const struct layout_match *m,
                        void (*fn)(void *arg, const char *name), void *arg);
int render_category_link(struct sched *s, const struct layout_match *m, struct buf *out);

/* render*.c */
struct render_ops {
    int (*text)(struct sched *s, const struct layout_match *m, struct buf *out);
    int (*list)(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
                void *arg);
    bool heavy; /* text takes and leaves the mutex by itself */
};
extern const struct render_ops render_table[LR_COUNT];

int render_object_status(struct sched *s, const struct layout_match *m, struct buf *out);
int render_list(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_status(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_status_json(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_progress(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_leaderboard(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_best(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_report(struct sched *s, const struct layout_match *m, struct buf *out);
int render_exp_spec(struct sched *s, const struct layout_match *m, struct buf *out);
int render_job_status(struct sched *s, const struct layout_match *m, struct buf *out);
int render_job_status_json(struct sched *s, const struct layout_match *m, struct buf *out);
int render_job_progress(struct sched *s, const struct layout_match *m, struct buf *out);
int render_job_svg(struct sched *s, const struct layout_match *m, struct buf *out);
int render_status(struct sched *s, const struct layout_match *m, struct buf *out);
int render_status_json(struct sched *s, const struct layout_match *m, struct buf *out);
int render_console(struct sched *s, const struct layout_match *m, struct buf *out);
int render_metrics(struct sched *s, const struct layout_match *m, struct buf *out);
int render_device(struct sched *s, const struct layout_match *m, struct buf *out);
int render_service_stats(struct sched *s, const struct layout_match *m, struct buf *out);
int render_service_endpoint(struct sched *s, const struct layout_match *m, struct buf *out);
json_t *experiment_json(struct sched *s, struct experiment *x); /* status.json; new reference */
json_t *experiment_summary(const struct experiment *x);         /* the same without its jobs */
json_t *leaderboard_json(struct experiment *x);
json_t *job_json(struct job *j);
/* render_space.c: who uses what; mutex held */
void render_owners(struct sched *s, struct buf *out);
void owners_json(struct sched *s, json_t *into); /* "space" and "owners" */
void owners_metrics(struct sched *s, struct buf *out);
void progress_line(const struct job *j, struct buf *out); /* one line without newline */
void add_field(struct buf *out, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void add_flat(struct buf *out, const char *text);                 /* on one line, no tab */
void add_time(struct buf *out, const char *key, int64_t wall_ns); /* nothing for 0 */
void add_bytes(struct buf *out, int64_t n);
json_t *text_or_null(const char *text);                             /* new; null for NULL and "" */
void add_number(struct buf *out, const json_t *v, const char *fmt); /* "-" where it is none */
const char *shown_reason(const char *reason);                       /* "" for NULL */

/* api.c: generated files below a path that is gone for good need not stay hidden.  Mutex held. */
void forget_hidden(struct sched *s, const char *below);

#endif
