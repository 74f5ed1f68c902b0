# SPDX-License-Identifier: MIT
# What `make install` puts where. Everything finds its neighbours relative to itself, so an installed tree can be moved.
set(CMAKE_INSTALL_LIBDIR lib CACHE PATH "Libraries, below the prefix")
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS attend_shared attend_static EXPORT attend-targets)
install(FILES include/attend.h TYPE INCLUDE)
if(TARGET attend_cli)
  install(TARGETS attend_cli)
endif()
file(GLOB man_pages CONFIGURE_DEPENDS docs/man/*.1)
install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)

set(package_directory ${CMAKE_INSTALL_LIBDIR}/cmake/attend)
set_target_properties(attend_static PROPERTIES EXPORT_NAME attend_static)
install(EXPORT attend-targets NAMESPACE attend:: DESTINATION ${package_directory})
configure_package_config_file(cmake/attend-config.cmake.in ${PROJECT_BINARY_DIR}/attend-config.cmake
                              INSTALL_DESTINATION ${package_directory})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/attend-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/attend-config.cmake ${PROJECT_BINARY_DIR}/attend-config-version.cmake
        DESTINATION ${package_directory})

file(RELATIVE_PATH pc_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/attend.pc.in ${PROJECT_BINARY_DIR}/attend.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/attend.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# The library inside the Python wheel (pyproject.toml): one file, because wheels have no symbolic links.
if(SKBUILD)
  install(FILES $<TARGET_FILE:attend_shared> DESTINATION attend RENAME libattend.so COMPONENT python)
endif()
