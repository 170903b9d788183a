# GNU make. Honours CC, CXX, CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS and LDLIBS; `make help` lists the targets.

BUILD  ?= build
PREFIX ?= /usr/local
CFLAGS ?= -O3
CXXFLAGS ?= -O3

FLAGS := -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -D_FILE_OFFSET_BITS=64 -I. -Wall -Wextra -Wpedantic -Wconversion -Wshadow
LIBS  := -lm -pthread
ifeq ($(WERROR),1)
FLAGS += -Werror
endif
ifeq ($(OPENMP),1)
FLAGS += -fopenmp
endif

# Flags of the user come last, so that they win.
COMPILE     := $(CC) -std=c99 $(FLAGS) $(CPPFLAGS) $(CFLAGS)
COMPILE_CXX := $(CXX) -std=c++11 $(FLAGS) $(CPPFLAGS) $(CXXFLAGS)
LINK        := $(LDFLAGS) $(LDLIBS) $(LIBS)

# The examples in C++ only where there is a compiler for it.
CXX_EXAMPLES := $(if $(shell command -v $(firstword $(CXX))),$(wildcard examples/*.cc))

PROGRAMS := $(patsubst %,$(BUILD)/%,$(basename $(notdir $(wildcard tools/*.c examples/*.c) $(CXX_EXAMPLES))))
TESTS    := $(patsubst %.c,$(BUILD)/%,$(filter-out tests/api_second.c tests/faults_preload.c \
            tests/real_size.c,$(wildcard tests/*.c)))
# Tests that see only the interface; they share one object with the implementation.
APITESTS := $(patsubst %.c,$(BUILD)/%,$(shell grep -l 'define SUPPORT_API_ONLY' tests/*.c))
STORY    := $(BUILD)/storyteller.jamba

.DELETE_ON_ERROR:
.PHONY: all run test faults sweeps real-size coverage mutations-validation bench bench-peer bench-sessions platforms \
	stack million lint analyse fuzz campaign install clean help FORCE

all: $(PROGRAMS) ## build every tool and example (the default)

run: $(BUILD)/chat $(STORY) ## build what it takes, convert examples/storyteller, answer a prompt
	@$(BUILD)/chat $(STORY) -p "Tell me a story about a dog and a boat."

test: all $(TESTS) ## build and run the tests
	@tests/run $(BUILD)

faults: all $(BUILD)/tests/faults $(BUILD)/tests/tool_faults ## every fault, kill and full disk for library and tools (takes half an hour)
	@CC="$(CC)" tests/faults.sh "$(BUILD)"

sweeps: all $(addprefix $(BUILD)/tests/,models damage state adapters convert_damage lora_convert) ## every sweep whole, 100,000 mutations of each format, 10,000 random models (takes hours)
	@tests/sweeps.sh "$(BUILD)"

real-size: all $(BUILD)/real_size ## convert and run random models of 1.2 and 3 billion weights (takes 10 GB and minutes)
	@$(BUILD)/real_size "$(BUILD)" Zamba2-1.2B Jamba-Reasoning-3B

coverage: ## branches and MC/DC of what reads files, lines of jamba.h, over all tests (needs clang-19, llvm-19)
	@tests/coverage.sh "$(BUILD)"

mutations-validation: ## 200 mistakes in what reads files: how many the tests notice
	@CC="$(CC)" python3 tests/validation_mutations.py "$(BUILD)"

bench: $(BUILD)/bench $(STORY) ## measure reading and writing speed of examples/storyteller
	@$(BUILD)/bench $(STORY)

bench-peer: $(BUILD)/bench $(BUILD)/convert $(BUILD)/inspect ## compare with llama.cpp and transformers (needs ../shared)
	@tests/bench_peer "$(BUILD)"

bench-sessions: $(BUILD)/bench_sessions ## what marks, forks and saved states cost, beside llama.cpp (models: make bench-peer)
	@python3 tests/bench_sessions.py "$(BUILD)"

platforms: $(BUILD)/convert $(BUILD)/logits ## other processors, systems and compilers, with more tests than CI runs (emulated: takes long)
	@PLATFORMS=all tests/platforms.sh "$(BUILD)"

stack: all $(TESTS) ## stack and recursion of jamba.h at every optimisation level, all tests in 64 KiB (takes minutes)
	@tests/stack.sh "$(BUILD)"
	@STACK=64 tests/run $(BUILD)

million: $(BUILD)/tests/numerics ## a million tokens of each recurrent family: numbers, and the same state after a save
	@STEPS=1000000 $(BUILD)/tests/numerics --filter tokens

lint: ## check jamba.h: calls it must not make, contents, declared and defined, line length
	@CC="$(CC)" CXX="$(CXX)" tests/lint

analyse: ## analysers, strict warnings, MSan, UBSan, valgrind; appends to tests/ledger.tsv (takes an hour)
	@LEDGER=tests/ledger.tsv tests/static.sh "$(BUILD)" all

fuzz: ## replay the inputs of every fuzz target, then fuzz each for 15 seconds (needs clang with libFuzzer)
	@tests/fuzz.sh "$(BUILD)" short

campaign: ## fuzz each target for EXECUTIONS (5000000); goes on where it was stopped, results in tests/ledger.tsv
	@tests/fuzz.sh "$(BUILD)" campaign

install: ## copy jamba.h to PREFIX/include
	mkdir -p "$(DESTDIR)$(PREFIX)/include"
	cp jamba.h "$(DESTDIR)$(PREFIX)/include/jamba.h"

clean: ## remove the build folder
	rm -rf "$(BUILD)"

help: ## list the targets and settings
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1@\2/p' Makefile | awk -F@ '{ printf "%-17s %s\n", $$1, $$2 }'
	@echo "settings: CC CXX CPPFLAGS CFLAGS (-O3) CXXFLAGS (-O3) LDFLAGS LDLIBS BUILD (build) PREFIX (/usr/local) WERROR=1 OPENMP=1"

$(STORY): $(BUILD)/convert $(wildcard examples/storyteller/*.json examples/storyteller/*.jinja \
		examples/storyteller/*.safetensors)
	$(BUILD)/convert examples/storyteller $@ --force

$(BUILD)/pirate.jamba-lora: $(BUILD)/convert $(STORY) $(wildcard examples/characters/pirate/*)
	$(BUILD)/convert examples/characters/pirate $@ --base $(STORY) --type f16 --force

define BUILD_PROGRAM
	@mkdir -p $(@D)
	$(or $(BRIEFLY),$(COMPILE)) -MMD -MP -MF $@.d -MT $@ -o $@ $< $(filter %.o,$^) $(LINK)
endef

$(BUILD)/%: tools/%.c $(BUILD)/flags
	$(BUILD_PROGRAM)

$(BUILD)/%: examples/%.c $(BUILD)/flags
	$(BUILD_PROGRAM)

$(BUILD)/%: examples/%.cc $(BUILD)/flags
	@mkdir -p $(@D)
	$(COMPILE_CXX) -MMD -MP -MF $@.d -MT $@ -o $@ $< $(LINK)

$(BUILD)/real_size: tests/real_size.c $(BUILD)/flags
	$(BUILD_PROGRAM)

# Tests that hold an implementation of their own compile three times as fast so; the others keep the flags of the library.
$(filter-out $(APITESTS),$(TESTS)): BRIEFLY := $(subst -O3,-O1,$(COMPILE))

$(BUILD)/tests/%: tests/%.c $(BUILD)/flags
	$(BUILD_PROGRAM)

$(APITESTS): $(BUILD)/tests/api_second.o

$(BUILD)/tests/tool_faults: | $(BUILD)/faults_preload.so

# Without the flags of the user, as those may be a sanitizer's; nothing where there is no glibc.
$(BUILD)/faults_preload.so: tests/faults_preload.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) -std=c99 -O1 -Wall -Wextra -shared -fPIC -o $@ $< || touch $@

$(BUILD)/tests/%.o: tests/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(COMPILE) -MMD -MP -MF $@.d -MT $@ -c -o $@ $<

# The flags of the last build: other ones rebuild everything.
ifneq ($(strip $(COMPILE) $(COMPILE_CXX) $(LINK)),$(strip $(shell cat $(BUILD)/flags 2>/dev/null)))
$(BUILD)/flags: FORCE
endif
$(BUILD)/flags:
	@mkdir -p $(BUILD)
	@printf '%s\n' '$(subst ','\'',$(strip $(COMPILE) $(COMPILE_CXX) $(LINK)))' >$@

-include $(wildcard $(BUILD)/*.d $(BUILD)/tests/*.d)
