/*
 * What the commands tdefs and mount.fuse.tdefs are: it starts Python with nothing of what the caller's environment holds.
 *
 * Python alone cannot do that. Before its first line runs, the dynamic loader has loaded what LD_PRELOAD says, and the
 * interpreter what PYTHONPATH says. This program is linked statically, so nothing is loaded into it, and it passes on
 * only variables of a short list, with values that name no file of the caller's choice. -I keeps the current directory
 * and the user's own packages out.
 *
 * The interpreter is the one beside this file, wherever links to this file lie.
 */

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef MODULE
#error "MODULE must be the module that is run"
#endif

#define PYTHON "/python3"
#define SAFE_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Exit.OS_ERROR and Exit.USAGE of tdefs/errors.py */
#define OS_ERROR 50
#define USAGE 2

#define MOST_ARGUMENTS 4096
#define MOST_VARIABLES 64
/* before the caller's own arguments */
#define OWN_ARGUMENTS 4

/* A name that ends in _ stands for all that begin with it. A value may have letters, digits, and what stands here. */
static const struct {
    const char *name;
    const char *others;
} PASSED_ON[] = {
    /* No slash: gettext, terminfo and the C library make names of files from these. */
    {"TERM", "-+._"},
    {"LANG", "-_.@"},
    {"LANGUAGE", "-_.@:"},
    {"LC_", "-_.@"},
    {"COLUMNS", ""},
    {"LINES", ""},
    /* Europe/Berlin; below the system's directory, see names_a_file_elsewhere(). */
    {"TZ", "/_+-.,<>:"},
    /* Of systemd, and of sudo. */
    {"NOTIFY_SOCKET", "/@_.:-"},
    {"CREDENTIALS_DIRECTORY", "/@_.:-\\"},
    {"INVOCATION_ID", ""},
    {"JOURNAL_STREAM", ":"},
    {"SUDO_UID", ""},
};

static int names_a_file_elsewhere(const char *name, const char *value)
{
    return strcmp(name, "TZ") == 0 && (value[0] == '/' || value[0] == ':' || strstr(value, "..") != NULL);
}

static int is_passed_on(const char *variable)
{
    const char *equals = strchr(variable, '=');
    if (equals == NULL)
        return 0;
    size_t length = (size_t)(equals - variable);
    for (size_t i = 0; i < sizeof PASSED_ON / sizeof *PASSED_ON; i++) {
        const char *name = PASSED_ON[i].name;
        size_t known = strlen(name);
        int is_beginning = name[known - 1] == '_';
        if ((is_beginning ? length <= known : length != known) || strncmp(variable, name, known) != 0)
            continue;
        for (const char *at = variable; at < equals; at++)
            if (!isupper((unsigned char)*at) && *at != '_')
                return 0;
        for (const char *at = equals + 1; *at != '\0'; at++)
            if (!isalnum((unsigned char)*at) && strchr(PASSED_ON[i].others, *at) == NULL)
                return 0;
        return !names_a_file_elsewhere(name, equals + 1);
    }
    return 0;
}

int main(int argc, char **argv, char **environment)
{
    static char python[4096 + sizeof PYTHON];
    static char *words[MOST_ARGUMENTS + OWN_ARGUMENTS + 1] = {python, "-I", "-m", MODULE};
    static char *passed[MOST_VARIABLES + 2] = {SAFE_PATH};

    /* The kernel's own word for it: what argv[0] says is the caller's choice. */
    ssize_t length = readlink("/proc/self/exe", python, 4096);
    if (length <= 0 || length == 4096) {
        fprintf(stderr, "tdefs: cannot tell where its own program lies: /proc/self/exe cannot be read\n"
                        "HINT:  mount /proc\n");
        return OS_ERROR;
    }
    python[length] = '\0';
    strcpy(strrchr(python, '/'), PYTHON);

    if (argc - 1 > MOST_ARGUMENTS) {
        fprintf(stderr, "tdefs: more than %d arguments\n", MOST_ARGUMENTS);
        return USAGE;
    }
    for (int i = 1; i < argc; i++)
        words[OWN_ARGUMENTS + i - 1] = argv[i];
    for (int i = 0, count = 1; environment[i] != NULL && count <= MOST_VARIABLES; i++)
        if (is_passed_on(environment[i]))
            passed[count++] = environment[i];

    execve(python, words, passed);
    fprintf(stderr, "tdefs: cannot start \"%s\": %s\n"
                    "HINT:  install tdefs into a virtual environment: its Python must lie beside the command\n",
            python, strerror(errno));
    return OS_ERROR;
}
