# Assay: one Makefile, non-recursive. `make help` lists what it can do.
#
# Variables: SAN=address,undefined|thread   V=1 (show commands)   CC=gcc|clang   B=folder for what is built   T=seconds (fuzz)
#            DESTDIR= prefix= sysconfdir= (install)   SPIRE_BIN=folder (bench)

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:

SHELL    := /bin/bash
CC       := $(if $(filter default,$(origin CC)),gcc,$(CC))
AR       := ar
SAN      ?=
V        ?=
T        ?= 60
B        ?= build
prefix   ?= /usr/local
sysconfdir ?= /etc
mandir   ?= $(prefix)/share/man
VERSION  := 0.1.0

comma    := ,
variant  := $(if $(SAN),san-$(subst $(comma),-,$(SAN)),release)
O        := $(B)/$(variant)
GEN      := $(B)/gen
Q        := $(if $(V),,@)
say       = $(if $(V),@:,@printf '  %-7s %s\n' $(1) $(2))

WOLFSSL  := $(shell deploy/wolfssl.sh --where)
WOLFLIB  := $(WOLFSSL)/lib/libwolfssl.a

# ---- flags ----

warn     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes \
            -Wold-style-definition -Wcast-qual -Wwrite-strings -Wformat=2 -Wundef -Wvla -Walloca -Wpointer-arith \
            -Wimplicit-fallthrough -Wdate-time -Wno-missing-field-initializers
harden   := -fstack-protector-strong -fstack-clash-protection -fPIE -fno-common -fno-strict-aliasing -fno-strict-overflow \
            -fno-delete-null-pointer-checks
probe     = $(shell $(CC) -Werror $(1) -x c -c -o /dev/null /dev/null 2>/dev/null && echo $(1))
probed   := $(call probe,-fcf-protection=full) $(call probe,-ftrivial-auto-var-init=zero) \
            $(call probe,-fstrict-flex-arrays=3) $(call probe,-fzero-call-used-regs=used-gpr)
dbus     := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags dbus-1 2>/dev/null))
include  := -I. -isystem $(GEN) -isystem $(WOLFSSL)/include $(dbus)
cppflags := -D_GNU_SOURCE -DASSAY_VERSION='"$(VERSION)"' $(include)
base     := -std=c17 -g -pthread -ffunction-sections -fdata-sections -MD -MP

ifeq ($(SAN),)
  cflags := $(base) -O2 -D_FORTIFY_SOURCE=3 $(harden) $(probed) -Werror
  ldsan  :=
else
  # A sanitizer build of GCC raises false warnings, so no -Werror here.
  cflags := $(base) -O1 -fno-omit-frame-pointer $(harden) -fsanitize=$(SAN) -fno-sanitize-recover=all
  ldsan  := -fsanitize=$(SAN)
endif
CFLAGS   ?=
LDFLAGS  ?=

absl     := $(notdir $(wildcard /usr/lib/*/libabsl_*.a))
# Debian's pkg-config file names no private libraries, so they are listed.
grpclibs := -Wl,--start-group -l:libgrpc_unsecure.a -l:libgpr.a -l:libaddress_sorting.a -l:libupb.a -l:libcares.a -l:libre2.a \
            -l:libz.a $(absl:%=-l:%) -l:libstdc++.a -Wl,--end-group
# Packed relocations save half a megabyte where the linker and libc know them.
relr     := $(shell echo 'int main(void){return 0;}' | $(CC) -fPIE -pie -Wl,-z,pack-relative-relocs -x c -o /dev/null - 2>/dev/null && echo -Wl,-z,pack-relative-relocs)
ldflags  := -pie -Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code -Wl,--as-needed -Wl,--gc-sections -Wl,-O1 $(relr) -static-libgcc $(ldsan)
ldlibs   := $(WOLFLIB) -l:libprotobuf-c.a -l:libuv_a.a -l:libjansson.a -l:libhttp_parser.a -l:libyaml.a -l:libdbus-1.a $(grpclibs) -lm -ldl -lpthread
sqlite   := -l:libsqlite3.a

# ---- what there is ----

protos   := $(sort $(shell find proto -name '*.proto' 2>/dev/null))
wkt      := google/protobuf/empty google/protobuf/struct google/protobuf/wrappers google/protobuf/any
gen_c    := $(protos:proto/%.proto=$(GEN)/%.pb-c.c) $(wkt:%=$(GEN)/%.pb-c.c)
gen_h    := $(gen_c:.c=.h)
gen_o    := $(gen_c:$(GEN)/%.c=$(O)/gen/%.o)
lib_c    := $(sort $(wildcard lib/*.c))
server_c := $(sort $(wildcard server/*.c))
agent_c  := $(sort $(wildcard agent/*.c))
lib_o    := $(lib_c:%.c=$(O)/%.o) $(gen_o) $(if $(wildcard lib/descriptors.S),$(O)/lib/descriptors.o)
server_o := $(filter-out $(O)/server/main.o,$(server_c:%.c=$(O)/%.o)) $(patsubst %.sql,$(O)/%.sql.o,$(sort $(wildcard server/schema/*.sql)))
agent_o  := $(filter-out $(O)/agent/main.o,$(agent_c:%.c=$(O)/%.o))

unit        := $(sort $(wildcard tests/unit/test_*.c tests/unit/server/test_*.c tests/unit/agent/test_*.c))
unit_bin    := $(unit:tests/unit/%.c=$(O)/tests/unit/%)
fuzzers     := $(sort $(wildcard tests/fuzz/fuzz_*.c))
fuzz_replay := $(fuzzers:tests/fuzz/%.c=$(O)/tests/fuzz/%)
bench_bin   := $(patsubst tests/bench/%.c,$(O)/tests/bench/%,$(sort $(wildcard tests/bench/*.c)))
tool_bin    := $(patsubst tests/tools/%.c,$(O)/tests/tools/%,$(sort $(wildcard tests/tools/*.c)))

.PHONY: all help deps check unit replay threads integration interop lint format install demo bench fuzz clean programs tools docs images kube e2e-k8s

all: deps
	$(Q)$(MAKE) --no-print-directory programs

help:
	@echo 'make            builds build/release/assay-server and assay-agent (installs what is missing on Debian 12)'
	@echo 'make demo       builds, then shows a server, an agent and workloads at work, in under a minute'
	@echo 'make check      every test that needs no foreign build: unit, fuzz corpus, configuration, integration, clients'
	@echo 'make interop    the unmodified SPIRE agent against our server (its first build takes minutes)'
	@echo 'make kube       what make check skips as long as there is no kube-apiserver: builds one first (minutes)'
	@echo 'make e2e-k8s    a whole Kubernetes node in a box with deploy/k8s on it (root; its first build takes minutes)'
	@echo 'make lint       format, module walls, cppcheck, clang-tidy, shellcheck, manual pages'
	@echo 'make format     lets clang-format have its way'
	@echo 'make bench      figures, one a line; SPIRE_BIN=folder compares with SPIRE in the same run'
	@echo 'make fuzz T=60  runs every fuzzer for T seconds (clang, libFuzzer)'
	@echo 'make docs       writes docs/CONFIG.md and the manual pages anew from the tables of the programs'
	@echo 'make images     container images build/images/assay-{server,agent}.tar, without a registry or a container tool'
	@echo 'make install    DESTDIR= prefix=$(prefix) sysconfdir=$(sysconfdir)'
	@echo 'make clean      removes $(B)/'
	@echo 'SAN=address,undefined or SAN=thread builds with sanitizers, in a folder of its own; V=1 shows the commands'

deps:
	$(Q)deploy/deps.sh build
	$(Q)deploy/wolfssl.sh >/dev/null

ifneq ($(server_c),)
programs: $(O)/assay-server
endif
ifneq ($(agent_c),)
programs: $(O)/assay-agent
endif
tools: $(tool_bin) $(bench_bin)

$(WOLFLIB):
	$(Q)deploy/wolfssl.sh >/dev/null

# ---- generated ----

$(GEN)/%.pb-c.c $(GEN)/%.pb-c.h: proto/%.proto
	$(call say,PROTOC,$<)
	$(Q)mkdir -p $(GEN) && protoc-c -Iproto -I/usr/include --c_out=$(GEN) $<

$(GEN)/google/protobuf/%.pb-c.c $(GEN)/google/protobuf/%.pb-c.h: /usr/include/google/protobuf/%.proto
	$(call say,PROTOC,$<)
	$(Q)mkdir -p $(GEN) && protoc-c -I/usr/include --c_out=$(GEN) $<

# For server reflection: what protoc writes, imports and all.
$(GEN)/descriptors.bin: $(protos)
	$(call say,PROTOC,$@)
	$(Q)mkdir -p $(GEN) && protoc -Iproto -I/usr/include --include_imports --descriptor_set_out=$@ $(protos)

$(O)/lib/descriptors.o: lib/descriptors.S $(GEN)/descriptors.bin
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D) && $(CC) -I$(GEN) -Wa,-I$(GEN) -c -o $@ $<

$(O)/gen/%.o: $(GEN)/%.c | $(gen_h)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(cppflags) $(cflags) -w $(CFLAGS) -c -o $@ $<

# SQL is linked in as text: symbol _binary_server_schema_NNN_sql_start.
$(O)/server/schema/%.sql.o: server/schema/%.sql
	$(call say,LD,$<)
	$(Q)mkdir -p $(@D) && ld -r -b binary -z noexecstack -o $@ $<

# ---- compiled ----

$(O)/%.o: %.c | $(gen_h) $(WOLFLIB)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(cppflags) $(cflags) $(warn) $(CFLAGS) -c -o $@ $<

$(O)/libassay.a: $(lib_o)
$(O)/libserver.a: $(server_o)
$(O)/libagent.a: $(agent_o)
$(O)/lib%.a:
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

link = $(Q)mkdir -p $(@D) && $(CC) $(cflags) $(CFLAGS) -o $@ $(filter %.o %.a,$^) $(ldflags) $(LDFLAGS)

$(O)/assay-server: $(O)/server/main.o $(O)/libserver.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs) $(sqlite)

$(O)/assay-agent: $(O)/agent/main.o $(O)/libagent.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs)

# ---- tests ----

# test_<x>.c may stand alone or with helpers in tests/unit/*.inc; server and agent tests link their half.
$(O)/tests/unit/server/%: $(O)/tests/unit/server/%.o $(O)/libserver.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs) $(sqlite)
$(O)/tests/unit/agent/%: $(O)/tests/unit/agent/%.o $(O)/libagent.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs)
$(O)/tests/unit/%: $(O)/tests/unit/%.o $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs)
$(O)/tests/tools/%: $(O)/tests/tools/%.o $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs)
$(O)/tests/bench/server_%: $(O)/tests/bench/server_%.o $(O)/libserver.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs) $(sqlite)
$(O)/tests/bench/%: $(O)/tests/bench/%.o $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs)
$(O)/tests/fuzz/%: $(O)/tests/fuzz/%.o $(O)/tests/fuzz/replay.o $(O)/libserver.a $(O)/libagent.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(link) $(ldlibs) $(sqlite)

unit: $(unit_bin)
	$(Q)tests/run unit $(unit_bin)

# Those whose module is used by several threads at once.
threads  := loop crypto keymgr log metrics door door_share door_tls rpc rpc_stream http http_client kube
threads: $(filter $(threads:%=$(O)/tests/unit/test_%),$(unit_bin))
	$(Q)tests/run unit $^

replay: $(fuzz_replay)
	$(Q)tests/run replay $(fuzz_replay)

integration: programs tools
	$(Q)O=$(O) tests/run script $(sort $(wildcard tests/integration/*.sh))

# All of it: units under both sanitizers' builds, corpus, integration on the release build. The count line is the last line.
check:
	$(Q)deploy/deps.sh build test
	$(Q)deploy/wolfssl.sh >/dev/null
	$(Q)tests/run suite check $(MAKE) --no-print-directory

# What `integration` skips as long as no kube-apiserver was built: this builds it, once (some 5 minutes).
kube:
	$(Q)deploy/deps.sh build test kube
	$(Q)tests/e2e/kube-build kube-apiserver kubectl >/dev/null
	$(Q)$(MAKE) --no-print-directory programs tools
	$(Q)O=$(O) tests/run script $(shell grep -l e2e/kube.inc tests/integration/*.sh)

e2e-k8s:
	$(Q)deploy/deps.sh build test e2e
	$(Q)$(MAKE) --no-print-directory images
	$(Q)O=$(O) tests/e2e/run

interop:
	$(Q)deploy/deps.sh build test
	$(Q)$(MAKE) --no-print-directory programs tools
	$(Q)tests/run suite interop $(MAKE) --no-print-directory

# libFuzzer builds everything anew with clang's coverage.
fuzz:
	$(Q)deploy/deps.sh build fuzz
	$(Q)$(MAKE) --no-print-directory CC=clang B=$(B)/fuzz SAN=address,undefined,fuzzer-no-link fuzz-run

.PHONY: fuzz-run
fuzz-run: $(fuzzers:tests/fuzz/%.c=$(O)/fuzz/%)
	$(Q)tests/run fuzz $(T) $^

$(O)/fuzz/%: $(O)/tests/fuzz/%.o $(O)/libserver.a $(O)/libagent.a $(O)/libassay.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -fsanitize=address,undefined,fuzzer -g -o $@ $(filter %.o %.a,$^) $(ldlibs) $(sqlite)

bench: programs tools
	$(Q)O=$(O) tests/bench/run

demo: all tools
	$(Q)$(MAKE) --no-print-directory tools
	$(Q)O=$(O) tests/demo/run

lint:
	$(Q)deploy/deps.sh build test lint
	$(Q)$(MAKE) --no-print-directory programs
	$(Q)tests/lint/run

format:
	$(Q)deploy/deps.sh lint
	$(Q)git ls-files '*.c' '*.h' | xargs clang-format -i

manuals := assay-server.1 assay-agent.1 assay-server.conf.5 assay-agent.conf.5
docs: programs
	$(Q)tests/lint/config-doc $(O) >docs/CONFIG.md
	$(Q)for p in $(manuals); do tests/lint/man-doc $(O) $$p >docs/man/$$p || exit; done

# ---- images ----

images: all
	$(Q)deploy/deps.sh images
	$(Q)mkdir -p $(B)/images
	$(Q)for p in server agent; do \
		deploy/image.py $$p --bin $(O)/assay-$$p --version $(VERSION) --out $(B)/images/assay-$$p.tar || exit; done

# ---- install ----

install: all
	install -d $(DESTDIR)$(prefix)/bin $(DESTDIR)$(sysconfdir)/assay $(DESTDIR)$(mandir)/man1 $(DESTDIR)$(mandir)/man5
	install -m 0755 -s $(O)/assay-server $(O)/assay-agent $(DESTDIR)$(prefix)/bin
	for f in server agent; do \
		test -e $(DESTDIR)$(sysconfdir)/assay/$$f.conf || install -m 0640 deploy/conf/$$f.conf $(DESTDIR)$(sysconfdir)/assay; done
	for m in $(wildcard docs/man/*.1); do install -m 0644 $$m $(DESTDIR)$(mandir)/man1; done
	for m in $(wildcard docs/man/*.5); do install -m 0644 $$m $(DESTDIR)$(mandir)/man5; done
	install -d $(DESTDIR)$(prefix)/lib/systemd/system
	for u in server agent files@; do sed 's|/usr/local/|$(prefix)/|; s|/etc/|$(sysconfdir)/|' deploy/systemd/assay-$$u.service \
		>$(DESTDIR)$(prefix)/lib/systemd/system/assay-$$u.service; done
	install -D -m 0644 deploy/completion/assay.bash $(DESTDIR)$(prefix)/share/bash-completion/completions/assay-server
	ln -sf assay-server $(DESTDIR)$(prefix)/share/bash-completion/completions/assay-agent
	install -D -m 0644 deploy/completion/_assay $(DESTDIR)$(prefix)/share/zsh/site-functions/_assay
	install -D -m 0644 deploy/completion/assay-server.fish $(DESTDIR)$(prefix)/share/fish/vendor_completions.d/assay-server.fish
	install -D -m 0644 deploy/completion/assay-agent.fish $(DESTDIR)$(prefix)/share/fish/vendor_completions.d/assay-agent.fish

clean:
	rm -rf $(B)

-include $(shell find $(O) -name '*.d' 2>/dev/null)
