/* Cipher suite 1 around OpenSSL's own AES-256-XTS: what tdefs.format.suite1.pages.PythonPageCipher does, without a new cipher
 * context for each page, and without Python's lock for long runs.
 *
 * The rules (tweak, zero pages, holes) are documented there, and tests hold the two equal.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <string.h>

enum { KEY_SIZE = 64, PAGE_SIZE = 8192, SECTOR_SIZE = 512, BLOCK_SIZE = 16 };

/* From this many bytes on it pays to let other threads run. */
enum { LONG_RUN = 65536 };

static const unsigned char zero_page[PAGE_SIZE];
static EVP_CIPHER *aes_256_xts;

typedef struct {
    PyObject_HEAD
    EVP_CIPHER_CTX *contexts[2]; /* decrypt, encrypt: keyed once */
} PageCipher;

static PyObject *raise_openssl(void)
{
    char text[256];
    ERR_error_string_n(ERR_get_error(), text, sizeof text);
    ERR_clear_error();
    PyErr_SetString(PyExc_RuntimeError, text);
    return NULL;
}

/* Set to zero what of a decrypted page are holes. */
static void clear_holes(const unsigned char *stored, unsigned char *plain, Py_ssize_t size)
{
    for (Py_ssize_t sector = 0; sector < size; sector += SECTOR_SIZE) {
        const Py_ssize_t stop = sector + SECTOR_SIZE < size ? sector + SECTOR_SIZE : size;
        Py_ssize_t hole = stop;
        while (hole > sector && !memcmp(stored + hole - BLOCK_SIZE, zero_page, BLOCK_SIZE))
            hole -= BLOCK_SIZE;
        memset(plain + hole, 0, (size_t)(stop - hole));
    }
}

/* Returns 0 when OpenSSL refused. Touches no Python object. */
static int process(EVP_CIPHER_CTX *context, int encrypting, unsigned long long page, const unsigned char *source,
                   unsigned char *target, Py_ssize_t size)
{
    for (Py_ssize_t start = 0; start < size; start += PAGE_SIZE, page++) {
        const Py_ssize_t length = size - start < PAGE_SIZE ? size - start : PAGE_SIZE;
        unsigned char tweak[BLOCK_SIZE] = {0};
        int written = 0;

        if (!memcmp(source + start, zero_page, (size_t)length)) {
            memset(target + start, 0, (size_t)length);
            continue;
        }
        for (int byte = 0; byte < 8; byte++)
            tweak[byte] = (unsigned char)(page >> (8 * byte));
        if (!EVP_CipherInit_ex(context, NULL, NULL, NULL, tweak, encrypting) ||
            !EVP_CipherUpdate(context, target + start, &written, source + start, (int)length) || written != length)
            return 0;
        if (!encrypting)
            clear_holes(source + start, target + start, length);
    }
    return 1;
}

static PyObject *run(PageCipher *self, PyObject *const *args, Py_ssize_t count, int encrypting)
{
    Py_buffer source;
    PyObject *result;
    int done;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "takes the number of the first page, and the pages");
        return NULL;
    }
    const unsigned long long page = PyLong_AsUnsignedLongLong(args[0]);
    if (page == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(args[1], &source, PyBUF_SIMPLE) < 0)
        return NULL;
    if (source.len % BLOCK_SIZE) {
        PyBuffer_Release(&source);
        PyErr_SetString(PyExc_ValueError, "the size is no multiple of 16");
        return NULL;
    }
    result = PyBytes_FromStringAndSize(NULL, source.len);
    if (!result) {
        PyBuffer_Release(&source);
        return NULL;
    }
    unsigned char *target = (unsigned char *)PyBytes_AS_STRING(result);
    EVP_CIPHER_CTX *context = self->contexts[encrypting];
    if (source.len < LONG_RUN) {
        done = process(context, encrypting, page, source.buf, target, source.len);
    } else {
        /* the object's own context belongs to the thread that holds Python's lock */
        EVP_CIPHER_CTX *own = EVP_CIPHER_CTX_new();
        done = own && EVP_CIPHER_CTX_copy(own, context);
        if (done) {
            Py_BEGIN_ALLOW_THREADS
            done = process(own, encrypting, page, source.buf, target, source.len);
            Py_END_ALLOW_THREADS
        }
        EVP_CIPHER_CTX_free(own);
    }
    PyBuffer_Release(&source);
    if (!done) {
        Py_DECREF(result);
        return raise_openssl();
    }
    return result;
}

static PyObject *encrypt(PageCipher *self, PyObject *const *args, Py_ssize_t count)
{
    return run(self, args, count, 1);
}

static PyObject *decrypt(PageCipher *self, PyObject *const *args, Py_ssize_t count)
{
    return run(self, args, count, 0);
}

static void dealloc(PageCipher *self)
{
    PyTypeObject *type = Py_TYPE(self);
    /* wipes the keys */
    EVP_CIPHER_CTX_free(self->contexts[0]);
    EVP_CIPHER_CTX_free(self->contexts[1]);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"file_key", NULL};
    Py_buffer key;
    PageCipher *self;
    int done = 1;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*:CompiledPageCipher", names, &key))
        return NULL;
    if (key.len != KEY_SIZE) {
        PyBuffer_Release(&key);
        PyErr_SetString(PyExc_ValueError, "the key must have 64 bytes");
        return NULL;
    }
    self = (PageCipher *)type->tp_alloc(type, 0);
    for (int encrypting = 0; self && done && encrypting < 2; encrypting++) {
        self->contexts[encrypting] = EVP_CIPHER_CTX_new();
        done = self->contexts[encrypting] &&
               EVP_CipherInit_ex(self->contexts[encrypting], aes_256_xts, NULL, key.buf, zero_page, encrypting);
    }
    PyBuffer_Release(&key);
    if (!done) {
        Py_CLEAR(self);
        raise_openssl();
    }
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"encrypt", (PyCFunction)(void (*)(void))encrypt, METH_FASTCALL,
     PyDoc_STR("encrypt(first_page, plaintext) -> bytes")},
    {"decrypt", (PyCFunction)(void (*)(void))decrypt, METH_FASTCALL,
     PyDoc_STR("decrypt(first_page, ciphertext) -> bytes")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Encrypts and decrypts runs of pages with one file key.")},
    {Py_tp_new, new},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "tdefs.format._compiled.CompiledPageCipher",
    .basicsize = sizeof(PageCipher),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_compiled",
    .m_doc = PyDoc_STR("Pages under AES-256-XTS, by OpenSSL without a detour."),
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__compiled(void)
{
    PyObject *created = PyModule_Create(&module);
    PyObject *type = created ? PyType_FromSpec(&spec) : NULL;

    if (!aes_256_xts && !(aes_256_xts = EVP_CIPHER_fetch(NULL, "AES-256-XTS", NULL)))
        PyErr_SetString(PyExc_ImportError, "this OpenSSL has no AES-256-XTS");
    if (!type || PyErr_Occurred() || PyModule_AddObjectRef(created, "CompiledPageCipher", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(created);
        return NULL;
    }
    Py_DECREF(type);
    return created;
}
